"""One A1111 child process, its HTTP API, and the path of a job through it."""

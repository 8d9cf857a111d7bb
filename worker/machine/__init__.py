"""What the worker stands on, and what is decided before A1111 starts."""

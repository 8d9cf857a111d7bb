"""The WebUI: its process, its HTTP API, one watched request, and the files that it is shown."""

"""Local runs: pictures kept as files, a table, and the gallery."""

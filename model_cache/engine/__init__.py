"""Bytes from hosts into private files: over several connections, under guard, resumed."""

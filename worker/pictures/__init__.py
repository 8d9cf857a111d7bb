"""Pictures as bytes: what callers send, formats, and the texts in them."""

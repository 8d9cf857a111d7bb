"""How pictures leave: storage, the volume, the size ladder, streams."""

"""Where a reference leads: what hosts say of a file before it is fetched."""

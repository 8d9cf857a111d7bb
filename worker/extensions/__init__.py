"""Scripts and extensions of A1111: what they may be told, checked before a job."""

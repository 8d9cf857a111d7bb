"""Many workers on one volume: who fetches, who uses what, and what has to go."""

"""What is on the volume: where files lie, what they are called, and what is known of them."""

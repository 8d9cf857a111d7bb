"""What the worker says, and what is left out of it."""

"""What a model file is, by its bytes."""

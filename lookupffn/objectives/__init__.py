"""What a model is trained for, one objective a file."""

"""Values trained by gradient while the model stays as it is, for many groups at once."""

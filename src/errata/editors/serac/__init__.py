"""SERAC: a memory beside the model, and a small model that answers near it."""

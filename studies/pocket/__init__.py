"""Trained editors on the pocket model, compared on held-out entities and held-out domains."""

"""The model: its tokens, sites, forward passes and log-probabilities."""

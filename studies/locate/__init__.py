"""The locate-then-edit family on the pocket model: batches, sequences, robustness, fixes."""

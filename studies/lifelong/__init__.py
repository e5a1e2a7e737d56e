"""Edits that are to last: long sequences, and what is left of each edit by its age."""

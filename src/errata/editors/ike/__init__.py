"""IKE: the edits as text in front of every question."""

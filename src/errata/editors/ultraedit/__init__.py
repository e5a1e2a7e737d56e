"""UltraEdit: one normalised ridge step per turn."""

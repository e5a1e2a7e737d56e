"""MEMOIR: a residual memory of which every edit writes its own sparse share of columns."""

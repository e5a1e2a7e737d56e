"""What every editor states about itself."""

FACTS = (
    "name", "title", "paper", "needs", "weights", "batch", "sequence", "sequential", "exports",
)  # fmt: skip
"""What the class of an editor states about itself; see `Editor`."""

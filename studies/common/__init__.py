"""What the studies share: means and intervals, result files, tables."""

"""T-Patcher: one more unit of the last block's FFN per edit."""

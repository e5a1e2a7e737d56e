"""Table II of the IBKE paper on the pocket model: `recipes/table2-pocket.toml` and its page."""

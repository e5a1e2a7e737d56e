"""Experiments that are too long for tests: each folder runs them and writes a page of results."""

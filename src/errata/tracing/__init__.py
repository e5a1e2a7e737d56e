"""Causal tracing: where a model recalls facts."""

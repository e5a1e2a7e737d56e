"""REP: gated adapters that move perturbed keys onto the key of the edit."""

"""GRACE: a codebook behind one layer."""

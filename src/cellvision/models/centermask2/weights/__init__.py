"""Weights of others into a net of ours: files, names and what fits."""

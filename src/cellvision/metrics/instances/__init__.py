"""Scores of cells one by one, for fields of thousands."""

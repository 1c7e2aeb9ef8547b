"""Cells to look at: overlays, marks, sheets of errors."""

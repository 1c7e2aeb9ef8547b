"""Scores: pure functions on numpy arrays, and in `state` the classes that gather them during training."""

"""Stateless functions on arrays and tensors; ``targets`` needs no torch, so nothing is imported here."""

"""Quantisation while training: where a net rounds, and the phases in which it learns to."""

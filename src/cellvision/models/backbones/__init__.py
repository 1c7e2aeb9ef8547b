"""Encoders that several nets share; each gives its feature maps by level, level i at stride 2**i."""

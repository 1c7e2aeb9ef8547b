"""Engines for NVIDIA GPUs, built from a bundle's graphs."""

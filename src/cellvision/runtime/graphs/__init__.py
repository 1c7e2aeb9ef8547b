"""Bundles opened: their graphs, run as the manifest says."""

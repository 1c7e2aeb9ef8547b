"""Bundles run without torch: images in, cells out."""

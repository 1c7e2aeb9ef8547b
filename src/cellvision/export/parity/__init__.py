"""Whether a bundle says what the net says."""

"""From maps of probabilities to cells: tile by tile, without a seam."""

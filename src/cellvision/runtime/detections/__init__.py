"""From boxes with small masks to cells: suppressed, joined, painted, measured."""

"""Eight bits instead of thirty-two: calibrated, measured, folded."""

"""The task that trains any net, its optimizer, checkpoints and reports."""

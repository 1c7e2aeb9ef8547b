"""FCOS, which finds boxes: its layers, what they learn and how their predictions become boxes."""

"""The true cells as a detector learns them."""

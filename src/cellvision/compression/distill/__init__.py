"""A net taught by another one, while it is trained, pruned and quantised."""

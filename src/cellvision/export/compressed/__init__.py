"""What a compression run made, measured: bundles of all its nets, side by side."""

"""What a net costs: time, memory, operators."""

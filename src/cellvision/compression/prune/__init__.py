"""Structured pruning: whole channels leave a net, chosen by what they do, until a target is met."""

"""What ``cellvision evaluate`` is made of."""

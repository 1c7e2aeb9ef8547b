"""What ``cellvision benchmark`` is made of."""

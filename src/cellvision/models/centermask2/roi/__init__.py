"""The heads that draw a mask in every box and judge it."""

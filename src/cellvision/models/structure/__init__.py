"""What compression changed in the structure of a net, as plain data, and how it is put back without its tools."""

"""The verbs of the ``cellvision`` command, one file each; no torch."""

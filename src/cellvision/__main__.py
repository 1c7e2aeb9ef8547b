"""``python -m cellvision`` is the ``cellvision`` command."""

import sys

from cellvision.cli import main

if __name__ == "__main__":
    sys.exit(main())

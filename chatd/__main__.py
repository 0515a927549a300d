"""``python -m chatd`` is the command ``chatd``."""

import sys

from chatd.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m blockwright``: what torchrun starts."""

import sys

from blockwright.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

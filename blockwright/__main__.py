"""``python -m blockwright``: what torchrun starts."""

import os
import sys

from blockwright.cli.main import main

if __name__ == "__main__":
    code = main()
    if "WORLD_SIZE" in os.environ:
        # One of gloo's threads that asks for the interpreter while it ends aborts the process, with all work done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

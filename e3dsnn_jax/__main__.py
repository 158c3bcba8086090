"""`python -m e3dsnn_jax` is the command `e3dsnn`."""

import sys

from e3dsnn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

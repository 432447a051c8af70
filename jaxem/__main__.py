"""`python -m jaxem`."""

import sys

from jaxem.cli import main

if __name__ == "__main__":
    sys.exit(main())

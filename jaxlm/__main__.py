"""`python -m jaxlm` is `jaxlm`."""

import sys

from jaxlm.cli import main

if __name__ == "__main__":
  sys.exit(main())

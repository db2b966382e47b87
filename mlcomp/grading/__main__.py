"""``python -m mlcomp.grading``: the same as ``mlcomp-grade``."""

import sys

from mlcomp.grading.cli import main

if __name__ == "__main__":
    sys.exit(main())

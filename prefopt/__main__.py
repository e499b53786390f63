"""``python -m prefopt`` is the program ``prefopt``, for ``accelerate launch -m prefopt train``."""

import sys

from prefopt.cli import main

if __name__ == "__main__":
    sys.exit(main())

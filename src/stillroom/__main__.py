"""``python -m stillroom`` is the ``stillroom`` command."""

import sys

from stillroom.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

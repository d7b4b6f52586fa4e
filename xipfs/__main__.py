"""`python -m xipfs` is the `xipfs` command."""

import sys

from xipfs.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

"""The program: ``python -m ddpm_core``. Here, and not in a host, the process is ours."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line and exit with its status."""
    from .screen import own_streams

    own_streams()
    from .cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())

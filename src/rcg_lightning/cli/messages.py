"""Messages of a command while it works. Only commands print; nothing here imports torch."""

import sys


def echo(line: str) -> None:
    """Print one line, at once."""
    print(line, file=sys.stdout, flush=True)

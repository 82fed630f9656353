"""Messages of a command while it works. Only commands print; nothing here imports torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rcg_lightning.errors import UserError

NOTHING_SAVED = "no checkpoint was written yet"  # a note on the error that ended a training


def echo(line: str) -> None:
    """Print one line, at once. Once the reader, such as head, has exited, the work goes on without messages."""
    with _standard_output():
        print(line, file=sys.stdout, flush=True)


def flush() -> None:
    """Write what other code has printed; like ``echo`` where nobody reads it."""
    with _standard_output():
        if sys.stdout is not None:  # as it is where the shell closed it
            sys.stdout.flush()


@contextmanager
def _standard_output() -> Iterator[None]:
    """Discard what is printed from an error of the standard output on; a UserError unless its reader has exited."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"the standard output cannot be written: {error.strerror}") from error

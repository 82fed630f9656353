"""An interruption from the keyboard is never lost.

Python raises it wherever the program happens to be. Inside a finaliser, or a library that ignores errors, it would
vanish and the run go on; so it is remembered, and raised again before the next step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noted = threading.Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interruptions inside the block; what was remembered before is forgotten."""
    _noted.clear()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    previous = signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def check() -> None:
    """Raise KeyboardInterrupt where one was remembered."""
    if _noted.is_set():
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _noted.set()
    raise KeyboardInterrupt

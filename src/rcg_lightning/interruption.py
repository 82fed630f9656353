"""Keyboard interruptions that are never lost.

Python raises KeyboardInterrupt wherever the program happens to be. In a finaliser, or in a library that ignores errors,
it would vanish and the run would go on. So it is remembered, and raised again before the next step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_interrupted = threading.Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interruptions inside the block; forget earlier ones."""
    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    previous = signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def check() -> None:
    """Raise KeyboardInterrupt if an interruption was remembered."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt

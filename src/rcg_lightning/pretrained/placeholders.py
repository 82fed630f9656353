"""Reading of weights from a file that also holds pickled objects: each object becomes an empty placeholder."""

import re
from pathlib import Path
from typing import Any

import torch

from rcg_lightning.pretrained.checkpoints import READING_FAILS, read_torch

LIMIT = 200  # kinds of objects in one file


class Placeholder:
    """Replaces an object that is not created: accepts every operation of a pickle and stores nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def unsafe_name(error: BaseException | None) -> str | None:
    """Return the class or function at which reading stopped because it could run code; None for other errors."""
    found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    if found is None:
        return None
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


def read_with_placeholders(path: Path) -> tuple[Any, list[str]]:
    """Return the content of a torch file, and the names of the objects in it that are neither tensors nor plain data.

    Nothing that the file names is imported or run: weights do not need it.
    """
    names: list[str] = []
    while True:
        with torch.serialization.safe_globals([(Placeholder, name) for name in names]):
            try:
                return read_torch(path), names
            except READING_FAILS as error:
                name = unsafe_name(error)
                if name is None or name in names or len(names) == LIMIT:
                    raise
                names.append(name)

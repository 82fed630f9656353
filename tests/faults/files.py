"""Faults at the writing of chosen files, installed in a child before its command runs."""

import builtins
import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

Fault = Callable[[], Any]


def at_write(pattern: str, byte: int, fault: Fault, nth: int = 1) -> None:
    """Call ``fault`` once the n-th file to be written whose path matches ``pattern`` holds ``byte`` bytes.

    The file is written to that byte first, as a full disk or a kill leaves it.
    """
    plain, opened = builtins.open, [0]

    def opening(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
        matches = isinstance(file, str | os.PathLike) and re.search(pattern, os.fspath(file))
        if not matches or not set(mode) & set("wax+"):
            return plain(file, mode, *args, **settings)
        opened[0] += 1
        if opened[0] < nth:
            return plain(file, mode, *args, **settings)
        binary = _Failing(plain(file, mode.replace("t", "").replace("b", "") + "b", 0), byte, fault)
        return binary if "b" in mode else io.TextIOWrapper(binary, "utf-8", write_through=True)

    builtins.open = io.open = opening  # type: ignore[assignment]
    _at_safetensors(pattern, byte, fault)


class _Failing(io.RawIOBase):
    """A file that takes n bytes and then calls ``fault``; no kind that numpy would write to past Python."""

    def __init__(self, file: Any, byte: int, fault: Fault) -> None:
        self.file, self.left, self.fault = file, byte, fault

    def write(self, content: Any) -> int:
        content = memoryview(content).cast("B")
        self.file.write(content[: self.left])
        if len(content) > self.left:
            self.left = 0
            self.fault()
        self.left -= len(content)
        return len(content)

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return self.file.readable()

    def seekable(self) -> bool:
        return True

    def seek(self, *args: Any) -> int:
        return self.file.seek(*args)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> Any:
        return self.file.read(size)

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)

    def close(self) -> None:
        self.file.close()
        super().close()


def _at_safetensors(pattern: str, byte: int, fault: Fault) -> None:
    """The same for safetensors, which writes outside Python; it reports a full disk as an error of its own."""
    plain = safetensors.torch.serialize_file

    def serialize(tensors: Any, path: Any, *args: Any, **settings: Any) -> Any:
        if not re.search(pattern, os.fspath(path)):
            return plain(tensors, path, *args, **settings)
        plain(tensors, path, *args, **settings)
        os.truncate(path, min(byte, Path(path).stat().st_size - 1))
        try:
            fault()
        except OSError as error:
            reason = f"{error.strerror} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: I/O error: {reason}") from None

    safetensors.torch.serialize_file = serialize


def at_rename(pattern: str, fault: Fault, nth: int = 1, after: bool = False) -> None:
    """Call ``fault`` right before, or after, the n-th rename to a path that matches ``pattern``."""
    plain, seen = os.replace, [0]

    def replace(source: Any, target: Any, **settings: Any) -> None:
        hit = bool(re.search(pattern, os.fspath(target)))
        seen[0] += hit
        if hit and seen[0] == nth and not after:
            fault()
        plain(source, target, **settings)
        if hit and seen[0] == nth and after:
            fault()

    os.replace = replace


def full_disk() -> None:
    """Raise what a write on a full disk raises."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

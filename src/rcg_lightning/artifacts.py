"""Files and folders on disk: cache folder, atomic writing, fingerprints, format checks and locks.

Nothing here imports torch or numpy, so commands that compute nothing start at once.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rcg_lightning.errors import UserError, one_line

log = logging.getLogger(__name__)


def cache_folder(*parts: str) -> Path:
    """Return the cache folder: ``$RCG_CACHE``, else ``rcg-lightning`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own, user = os.environ.get("RCG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(user or Path.home() / ".cache") / "rcg-lightning"
    return folder.joinpath(*parts)


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a draft path; when the block ends, the draft replaces ``path``. If the block fails, ``path`` stays.

    Args:
        path: the file to write; its folder is created if needed.
        shared: several processes may write the file at once, so each has its own draft. Otherwise the next process
            overwrites the draft of a killed one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}.draft" if shared else f".{path.name}.draft")
    try:
        yield draft
        flush(draft)
        os.replace(draft, path)
    except OSError as error:
        if error.filename in (None, str(draft)):
            error.filename = str(path)  # the path that the user knows
        raise
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, marker: str, kind: str) -> Iterator[Path]:
    """Yield an empty draft folder; when the block ends, it replaces ``folder``. If the block fails, ``folder`` stays.

    Args:
        folder: a new folder, an empty one, or one that holds ``marker``, which is replaced.
        marker: path inside that identifies a folder of this kind.
        kind: name of such a folder, for messages.

    Raises:
        UserError: ``folder`` exists and is of another kind.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / marker).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not {kind}: give another path")
    draft, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("draft", "old"))
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
        draft.mkdir(parents=True)
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                flush(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(draft, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.is_dir() and not folder.exists():
            os.rename(old, folder)
        if str(error.filename).startswith(str(draft)):
            error.filename = str(folder)  # the path that the user knows
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_writable(path: Path, is_file: bool = False) -> None:
    """Raise a UserError where a file or folder cannot be written: before the work, not after it."""
    if is_file and path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a file to write")
    nearest = path if path.is_dir() else path.parent
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{path} cannot be written: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {nearest} is read-only for you")


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a text file, complete or not at all."""
    with replacing(path, shared) as draft:
        draft.write_text(text)


def write_json(path: Path, content: Any, shared: bool = False) -> None:
    """Write plain data as a JSON file, complete or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n", shared)


def flush(path: Path) -> None:
    """Flush a file to the disk: after a power failure, a file must not exist without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_state(path: Path, fits: Callable[[dict[str, Any]], bool] = lambda content: True) -> dict[str, Any]:
    """Return the JSON object that an earlier run left for the next one; empty if there is none.

    A file that is damaged, or whose content does not pass ``fits``, counts as missing, with a warning: its work is done
    again.
    """
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and fits(content):
            return content
        reason = "it holds something else"
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        reason = one_line(error, 120)
    log.warning("%s is damaged (%s): what it recorded is done again", path, reason)
    return {}


def set_aside(path: Path, name: str) -> Path:
    """Rename a file or folder to ``name``, or to ``name-1``, ``name-2``, … if that exists, and return the new path."""
    stem, dot, suffix = name.partition(".") if path.is_file() else (name, "", "")
    found, number = path.with_name(name), 1
    while found.exists():
        found = path.with_name(f"{stem}-{number}{dot}{suffix}")
        number += 1
    return path.rename(found)


# -- fingerprints ------------------------------------------------------------------------------------------------------


def fingerprint(content: Any, buffers: Iterable[bytes | memoryview] = ()) -> str:
    """Hash plain data (as canonical JSON) and the bytes of arrays: 16 hexadecimal digits of a SHA-256."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for buffer in buffers:
        found.update(buffer)
    return found.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_format(found: Any, current: int, what: str, remedy: str) -> None:
    """Raise a UserError if an artifact was written by another version of this project.

    Args:
        found: format number in the artifact; None where it has none, as in some artifacts of the first format.
        current: format number that this version writes and reads.
        what: the artifact and its path, for the message.
        remedy: how to create it again.
    """
    if found != current:
        older = not isinstance(found, int) or found < current
        version = "an earlier version, before the renaming" if older else "a later version"
        formats = f"format {1 if found is None else found}, this version reads format {current}"
        raise UserError(f"{what} was made by {version} ({formats}): {remedy if older else 'update rcg-lightning'}")


# -- locks -------------------------------------------------------------------------------------------------------------


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_lock_files: set[IO[str]] = set()


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file ``path``; raise a UserError if another process holds it.

    The system releases the lock of a process that ends in any way. On NFS it holds between machines, unless the mount
    has local locks (``nolock``, ``local_lock``); a file system without locks gives a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(message) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s cannot be locked (%s): start nothing else in this folder", path, error.strerror)
        _lock_files.add(file)
        try:
            yield
        finally:
            _lock_files.discard(file)


def _leave_locks() -> None:
    """Close the lock files in a forked process, such as a loader's worker: it may outlive a killed parent."""
    for file in _lock_files:
        file.close()
    _lock_files.clear()


os.register_at_fork(after_in_child=_leave_locks)

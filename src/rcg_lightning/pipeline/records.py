"""Records of what a pipeline has finished: for each step its key, command, time and files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rcg_lightning.artifacts import read_state, write_json
from rcg_lightning.errors import UserError

CURVES = "curves.png"  # drawn into the folders of trainings by each report, after they have finished


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a step's last run; empty if it never started, or, with a warning, if it is damaged."""
    return read_state(path, _is_record)


def _is_record(content: dict[str, Any]) -> bool:
    spent, seconds, files = content.get("spent", 0), content.get("seconds"), content.get("files", {})
    finished = seconds is None or (isinstance(seconds, int | float) and "files" in content)
    sizes = isinstance(files, dict) and all(isinstance(size, int) for size in files.values())
    return isinstance(content.get("key"), str) and isinstance(spent, int | float) and finished and sizes


def write_record(path: Path, content: Any) -> None:
    """Write plain data as JSON, complete or not at all."""
    try:
        write_json(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room and run it again") from error


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a step, without logs and curves, which others may write, and hidden files, such as locks."""
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and "tfevents" not in path.name and path.name != CURVES and not path.name.startswith(".")
    )


def sizes_of(folder: Path, files: Iterable[Path]) -> dict[str, int]:
    """Return the size in bytes of each file, by its path in ``folder``."""
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(files)}


def is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether all recorded files exist, in their recorded sizes; not where none are recorded."""
    sizes = record.get("files")
    # earlier versions recorded curves
    return sizes is not None and all(_is_same(folder / name, size) for name, size in sizes.items() if name != CURVES)


def _is_same(path: Path, size: int) -> bool:
    """Whether a file has its size; a JSON file must be readable too: after a power failure it may hold zeros."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    try:
        return path.suffix != ".json" or json.loads(path.read_bytes()) is not None
    except (ValueError, RecursionError):
        return False


def unrecorded_seconds(folder: Path, path: Path, record: Mapping[str, Any]) -> float:
    """Return the seconds that a killed run worked until it last wrote a file; 0 for one that finished.

    Args:
        folder: of the step.
        path: of its record.
        record: the content of the record; empty where it never started.
    """
    if not record or record.get("seconds") is not None:
        return 0.0
    return max([file.stat().st_mtime - path.stat().st_mtime for file in files_of(folder)] + [0.0])

"""Whether files on disk still hold what was written: their own checksums, compared before the content is used.

Nothing here imports torch or numpy.
"""

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rcg_lightning.artifacts import cache_folder, check_format, file_sha256, fingerprint, write_text
from rcg_lightning.errors import UserError, one_line

MARKED = 1 << 28  # bytes from which a passed check is also remembered for later processes
CHECKS = 1  # version of the checks: remembered results of other versions do not count
SUMS = "SHA256SUMS"  # file of checksums in the format of the program sha256sum
CHECKSUM = "checksum"  # entry of a description: fingerprint of the other entries
_TICK = 0.1  # seconds: clocks of file systems are coarser than two writes of one program
_passed: set[str] = set()


def unless_verified(files: Sequence[Path], check: Callable[[], None], kind: str) -> None:
    """Run ``check``, which raises where one of ``files`` is damaged, unless they have not changed since they passed it.

    ``kind`` names the check: a file that passed one may still fail another. Size and times of change decide, as they do
    for make and git. This process remembers every passed check; of large files also the cache folder does, in an empty
    file named by a hash of kind, paths, sizes and times.
    """
    stats = [file.stat() for file in files]
    found = [[str(file.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in zip(files, stats)]
    stamp = fingerprint([CHECKS, kind, found])
    marker = cache_folder("verified", stamp) if sum(s.st_size for s in stats) >= MARKED else None
    if stamp in _passed or (marker is not None and marker.is_file()):
        return
    # a file that is changed again within the clock's tick would keep its times
    settled = time.time() - max((max(s.st_mtime, s.st_ctime) for s in stats), default=0.0) > _TICK
    check()
    if settled:
        _passed.add(stamp)
        if marker is not None:
            with suppress(OSError):  # a read-only cache costs time, not correctness
                write_text(marker, "", shared=True)


def check_torch_file(path: Path) -> None:
    """Raise a UserError if a file of ``torch.save`` is cut short, or a record differs from its own CRC.

    torch itself compares no CRC. This reads the file once, in pieces, about 1.5 GB/s from memory; ``unless_verified``
    saves repeating it. Files in torch's format before 1.6 have no checksums, and pass.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    damage = zip_damage(path, stored=True)
    if damage is not None:
        raise UserError(f"{path} cannot be read, it is damaged or incomplete ({damage}): fetch or copy it again")


def zip_damage(path: Path, stored: bool = False) -> str | None:
    """Describe the damage of a ZIP file, such as a checkpoint; None if it is whole. Reads every byte, in pieces.

    Args:
        stored: nothing in it may be compressed, as in files of torch: a small file could take any memory.
    """
    name = None
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
            size = sum(record.file_size for record in records)
            if stored and size > path.stat().st_size:
                return f"it claims {size} bytes, more than the file has"
            if not any(record.CRC for record in records):
                return None  # torch can write files without checksums
            with tqdm(desc=f"checking {path.name}", total=size, unit="B", unit_scale=True, delay=3, leave=False) as bar:
                for record in records:
                    name = record.filename
                    with file.open(record) as content:
                        while piece := content.read(1 << 20):
                            bar.update(len(piece))
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        return reason if name is None else f"{name} in it does not match its checksum"
    return None


# -- descriptions ------------------------------------------------------------------------------------------------------


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain content with its own checksum, as ``read_sealed`` expects it in a JSON file."""
    plain = json.loads(json.dumps(content))  # tuples and numbers as keys would change on reading
    return {**plain, CHECKSUM: fingerprint(plain)}


def matches_seal(content: Mapping[str, Any]) -> bool:
    """Whether plain content matches its own checksum, if it has one."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    return content.get(CHECKSUM) in (None, fingerprint(rest))


def read_sealed(path: Path, keys: set[str], form: int, what: str, remedy: str) -> dict[str, Any]:
    """Return the content of a JSON file that was written ``sealed``.

    Args:
        path: the file.
        keys: its entries, next to ``format`` and the checksum.
        form: number of the format that this version reads.
        what: the described artifact and its path, for messages.
        remedy: how to make it again.

    Raises:
        UserError: the file is of another format or has changed. Earlier versions wrote no checksum; that is accepted.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is not readable ({error}): {remedy}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} does not describe {what}: {remedy}")
    check_format(content["format"], form, what, remedy)
    intact = matches_seal(content)
    content.pop(CHECKSUM, None)
    if not intact or content.keys() != keys | {"format"}:
        raise UserError(
            f"{path} is damaged or was edited, it does not match its own checksum: {remedy}, or delete its entry "
            f"{CHECKSUM} if you edited it"
        )
    return content


# -- folders of other programs' files ----------------------------------------------------------------------------------


def write_sums(folder: Path) -> None:
    """Write the checksums of a folder's files next to them, as the program sha256sum does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{file_sha256(path)}  {path.relative_to(folder)}\n" for path in files))


def read_sums(path: Path) -> dict[Path, str]:
    """Return the files that a list of checksums names, each with its SHA-256."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip() and line[0] != "#"]
    rows = [line.split(maxsplit=1) for line in lines]
    if any(len(row) != 2 or len(row[0]) != 64 for row in rows):
        raise UserError(f"{path} is damaged: its lines should be a SHA-256 and a file's name, as sha256sum writes them")
    return {path.parent / name.removeprefix("*"): sha256.lower() for sha256, name in rows}


def check_sums(path: Path) -> None:
    """Raise a UserError where a file, or one in a folder, differs from the list of checksums there, if there is one."""
    listed = (path if path.is_dir() else path.parent) / SUMS
    if listed.is_file():
        for file, sha256 in read_sums(listed).items():
            wrong = sum_fault(file, sha256) if path.is_dir() or file == path else None
            if wrong is not None:
                raise UserError(wrong)


def sum_fault(path: Path, sha256: str) -> str | None:
    """Return a line about a file that is missing or has another SHA-256 than a list of checksums; else None."""
    if path.is_file() and file_sha256(path) == sha256:
        return None
    return f"{path} is {'damaged' if path.is_file() else 'missing'}, by {SUMS} in its folder: fetch or copy it again"

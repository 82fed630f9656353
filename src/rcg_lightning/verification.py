"""Which files are damaged, among all that this project writes: one pass over everything below a path."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from rcg_lightning.data.decode import Unreadable, opened_image
from rcg_lightning.data.shard_files import size_fault
from rcg_lightning.data.shards import IDENTITY, MANIFEST
from rcg_lightning.data.store import Store
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.integrity import CHECKSUM, SUMS, check_torch_file, matches_seal, read_sums, sum_fault, zip_damage
from rcg_lightning.pretrained.checkpoints import read_checkpoint
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import WEIGHTS, check_digest, read_description
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.stages.stage_folder import read_stage_description
from rcg_lightning.types import require


class Finding(NamedTuple):
    """A file that was read.

    Attributes:
        path: the file.
        fault: one line that names it and says what is wrong; None where nothing is.
        checksum: whether it has one; otherwise only its structure and length were checked.
    """

    path: Path
    fault: str | None = None
    checksum: bool = True


def findings(path: Path) -> Iterator[Finding]:
    """Read every artifact at or below ``path`` and yield its files; other files, such as logs, are left out."""
    path = Path(path).expanduser()
    require(path.exists(), f"nothing at {path}: correct the path")
    yield from _of_folder(path, set()) if path.is_dir() else _of_file(path)


def _of_folder(folder: Path, seen: set[Path]) -> Iterator[Finding]:
    if folder.resolve() in seen:  # links can form a circle
        return
    seen.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Finding(folder, f"{folder} cannot be read ({error.strerror or error})")
        return
    if (folder / MANIFEST).exists() or (folder / IDENTITY).exists():
        yield from _of_store(folder)
        return
    listed = yield from _of_sums(folder / SUMS)
    for name, read in ((NETWORK, read_description), (STAGE, read_stage_description)):
        if (folder / name).exists():
            yield from _of_network(folder, name, read)
            listed |= {folder / name, folder / WEIGHTS}
    for path in entries:
        if not path.exists():
            yield Finding(path, f"{path} is a link to {path.readlink()}, which is missing")
        elif path.is_dir() and not path.name.startswith("."):
            yield from _of_folder(path, seen)
        elif path.is_file() and path not in listed:
            yield from _of_file(path)


def _of_network(folder: Path, name: str, read: Callable[[Path], dict[str, Any]]) -> Iterator[Finding]:
    """Yield the description ``name`` of a network or stage, and its weights."""
    fault = _fault(folder / name, lambda: read(folder))
    yield Finding(folder / name, fault)
    if fault is None:
        yield Finding(folder / WEIGHTS, _fault(folder / WEIGHTS, lambda: check_digest(folder, read(folder), name)))


def _of_store(folder: Path) -> Iterator[Finding]:
    try:
        store = Store.described(folder)
    except UserError as error:
        yield Finding(folder / MANIFEST, str(error))
        return
    yield Finding(folder / MANIFEST)
    for path, line in store.examined():
        yield Finding(path, line)


def _of_sums(path: Path) -> Iterator[Finding]:
    """Yield the files in a list of checksums; returns their paths."""
    if not path.is_file():
        return set()
    try:
        sums = read_sums(path)
    except UserError as error:
        yield Finding(path, str(error))
        return {path}
    for file, sha256 in sums.items():
        yield Finding(file, sum_fault(file, sha256))
    return {path, *sums}


def _of_file(path: Path) -> Iterator[Finding]:
    """Yield a file of a known kind, and the files that it lists."""
    kind = "torch" if path.name.endswith(".pth.tar") else _KINDS.get(path.suffix.lower())
    if kind is None or path.name.endswith(".draft"):
        return
    check, checksum = _CHECKS[kind]
    fault = _fault(path, lambda: check(path))
    yield Finding(path, fault, fault is None and checksum(path))
    if kind == "json":
        yield from _of_record(path)


def _of_record(path: Path) -> Iterator[Finding]:
    """Yield the files of a pipeline's step whose size differs from the one in its record; their content comes later."""
    content = _json(path)
    files = content.get("files") if isinstance(content, dict) else None
    folder = path.with_name(path.stem.removeprefix("."))
    if path.name.startswith(".") and isinstance(files, dict) and folder.is_dir():
        for name, size in files.items():
            wrong = size_fault(folder / name, size)
            if wrong is not None:
                yield Finding(folder / name, f"{folder / name} {wrong}, by {path}: run the pipeline again")


def _fault(path: Path, check: Callable[[], object]) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return None


# -- kinds of files ----------------------------------------------------------------------------------------------------


def _check_torch(path: Path) -> None:
    check_torch_file(path)
    if not _is_zip(path):
        read_checkpoint(path, "its owner")


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:  # compares the file's length with its header
            known = "reference" in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or incomplete ({one_line(error, 120)})") from error
    if known:
        Reference.load(path)


def _check_npz(path: Path) -> None:
    damage = zip_damage(path)
    require(damage is None, f"{path} is damaged or incomplete ({damage})")


def _check_image(path: Path) -> None:
    try:
        with opened_image(path) as image:
            image.load()
        with opened_image(path) as image:
            image.verify()  # compares the checksums of a PNG
    except Unreadable as error:
        raise UserError(f"{path} is damaged or incomplete ({one_line(error, 120)})") from error


def _check_json(path: Path) -> None:
    content = _json(path)
    require(content is not None, f"{path} is damaged, it is not readable as JSON")
    require(
        not isinstance(content, dict) or matches_seal(content),
        f"{path} is damaged or was edited, it does not match its own checksum",
    )


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _has_reference(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "checksum" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


_CHECKS: dict[str, tuple[Callable[[Path], None], Callable[[Path], bool]]] = {
    "torch": (_check_torch, _is_zip),
    "safetensors": (_check_safetensors, _has_reference),
    "npz": (_check_npz, lambda path: True),
    "image": (_check_image, lambda path: path.suffix.lower() == ".png"),
    "json": (_check_json, lambda path: CHECKSUM in (_json(path) or ())),  # type: ignore[operator]
}
_KINDS = {".ckpt": "torch", ".pt": "torch", ".pth": "torch", ".safetensors": "safetensors", ".npz": "npz"}
_KINDS |= {".json": "json", ".png": "image", ".jpg": "image", ".jpeg": "image"}

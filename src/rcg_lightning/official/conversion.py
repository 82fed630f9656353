"""Conversion of official files to native folders and back. Reports are lines of text."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rcg_lightning.artifacts import replacing, replacing_folder
from rcg_lightning.errors import UserError
from rcg_lightning.official.base import FilePart, NativeModel, NetworkPart, OfficialFile, StagePart
from rcg_lightning.official.tensor_report import report_tensors
from rcg_lightning.pretrained.checkpoints import READING_FAILS, read_checkpoint
from rcg_lightning.pretrained.kl_checkpoints import USE
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import plain_copy
from rcg_lightning.pretrained.placeholders import read_with_placeholders, unsafe_name
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.types import require


def to_native(source: Path, out: Path, kind: OfficialFile | None = None, trust_pickle: bool = False) -> list[str]:
    """Write the content of an official file as a folder; return a report on every tensor.

    Args:
        source: the file, or the folder of a model's files.
        out: folder of the one part of the file, or bundle of several; it appears complete or not at all.
        kind: of the file; None recognises it by its content.
        trust_pickle: see ``read_official``.
    """
    content, left_out = read_official(source, trust_pickle)
    kind = kind or OfficialFile.of(content, str(source))
    parts = kind.parts(content, str(source))
    write(parts, out)
    lines = [f"left out    {', '.join(left_out)}: objects, not weights"] if left_out else []
    lines.append(f"{source}: {kind.description}")
    for name, part in parts.items():
        lines.append(f"{name:<12}{part.description} -> {out if len(parts) == 1 else out / name}")
    used = [tensor for part in parts.values() for tensor in part.used.values()]
    missing = [line for part in parts.values() if isinstance(part, StagePart) for line in part.missing]
    changed = {pattern: how for part in parts.values() for pattern, how in part.changed.items()}
    lines += report_tensors(content, used, kind.ignored, changed).lines()
    return [*lines, f"missing     {'; '.join(missing) or 'none'}"]


def to_official(source: Path, out: Path, kind: OfficialFile | None = None) -> list[str]:
    """Write a native model as a file in the official layout, or as a folder where that has several; return a report.

    Args:
        source: a checkpoint, a stage's folder, a bundle, or the folder of an encoder.
        out: the file or folder, which appears complete or not at all.
        kind: of the official file; None chooses it by the model's classes.
    """
    native = NativeModel.read(source)
    kind = kind or OfficialFile.for_native(native)
    content = _copied(kind.official(native))
    if kind.files:
        with replacing_folder(out, f"{kind.files[0]}.pth", "a folder of official files") as draft:
            for name, state in content.items():
                torch.save(state, draft / f"{name}.pth")
    else:
        require(not out.is_dir(), f"{out} is a folder: give the name of a file, such as {out / 'checkpoint.pth'}")
        with replacing(out) as draft:
            torch.save(content, draft)
    count = sum(len(value) for value in content.values() if isinstance(value, dict))
    return [f"{out}: {kind.description} of {count} tensors, from {source}"]


def read_official(path: Path, trust_pickle: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Return the content of an official file, and the names of objects that were left out.

    The content of a folder is that of each of its files, by name.

    Args:
        path: the file or folder.
        trust_pickle: read a file that holds pickled objects in addition to weights. The objects are left out, and
            none of their code is run.

    Raises:
        UserError: there is no such file, it is damaged, or it holds objects and ``trust_pickle`` is not set.
    """
    if path.is_dir():
        _reject_diffusers(path)
        read = {name: read_official(file, trust_pickle) for name, file in files_in(path).items()}
        return {name: content for name, (content, _) in read.items()}, [
            each for _, out in read.values() for each in out
        ]
    try:
        return read_checkpoint(path, "an official model"), []
    except UserError as error:
        _reject_whole_objects(path, error)
        name = unsafe_name(error.__cause__)
        if name is None:
            raise
        if not trust_pickle:
            raise UserError(
                f"{path} holds more than weights: {name}, an object whose reading could run code. Nothing was run. "
                "--trust_pickle true reads the weights next to it and leaves such objects out"
            ) from error
    try:
        content, names = read_with_placeholders(path)
    except READING_FAILS as error:
        raise UserError(f"{path} cannot be read, not even without its objects: {str(error)[:200]}") from error
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__} instead of weights")
    return dict(content), names


def files_in(folder: Path) -> dict[str, Path]:
    """Return the files of one official model in a folder, by their names without the suffix that they share.

    The official IC-GAN calls a model's files ``G.pth``, ``G_ema.pth``, ``D.pth``, and those of its best state
    ``G_best0.pth``, ``G_ema_best0.pth``, ``D_best0.pth``.

    Raises:
        UserError: the folder holds no model, or several.
    """
    names = sorted({name for kind in OfficialFile.kinds().values() for name in kind.files}, key=len, reverse=True)
    models: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.pth")):
        match = re.fullmatch(rf"({'|'.join(names)})(_(?!ema|optim)\w+)?", file.stem)
        if match is not None and not file.stem.endswith("_optim"):
            models.setdefault(match[2] or "", {})[match[1]] = file
    contents = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4]) or "nothing"
    expected = f"give an official file, or the folder of {', '.join(f'{name}.pth' for name in sorted(names))}"
    require(bool(models), f"{folder} holds {contents}, and no official model: {expected}")
    several = f"{folder} holds several models ({contents}, …): put the files of one of them into a folder"
    require(len(models) == 1 or "" in models, several)
    return models[""] if "" in models else next(iter(models.values()))


def write(parts: Mapping[str, FilePart], out: Path) -> None:
    """Write one part as ``out`` itself, several as a bundle; ``out`` appears complete or not at all."""
    first, part = next(iter(parts.items()))
    if len(parts) == 1:
        part.save(out, {})
        return
    description = {NetworkPart: NETWORK, StagePart: STAGE}[type(part)]
    with replacing_folder(out, f"{first}/{description}", "a bundle like this") as draft:
        for name, part in sorted(parts.items(), key=lambda item: isinstance(item[1], StagePart)):  # networks first
            part.save(draft / name, {other: draft / other for other in parts if (draft / other).is_dir()})


def _reject_diffusers(folder: Path) -> None:
    """Raise a UserError with advice if a folder holds a KL autoencoder in diffusers' layout, or a pipeline with one."""
    network = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        name = str(json.loads((network / "config.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    require(not name.startswith("AutoencoderKL"), f"{network} is a KL autoencoder in diffusers' layout: {USE}")


def _reject_whole_objects(path: Path, error: UserError) -> None:
    """Raise a UserError with advice if an unreadable file holds the pickled objects of a known kind."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(1 << 20)
    for kind in OfficialFile.kinds().values():
        for pattern, advice in kind.pickled.items():
            if pattern in start:
                raise UserError(f"{path} holds whole objects, which are not read: {advice}") from error


def _copied(content: Any) -> Any:
    """Copy all tensors to the CPU: views of one memory would be saved as a whole."""
    if isinstance(content, dict):
        return {name: _copied(value) for name, value in content.items()}
    return plain_copy(content) if isinstance(content, torch.Tensor) else content

"""Stages as folders: the content of a checkpoint, as JSON and safetensors; and bundles of all that sampling needs.

A bundle is a folder of folders: ``generator`` and ``prior`` (stages), ``instances`` (a store), ``autoencoder`` and
``encoder`` (networks), as far as there are any. A stage folder or a bundle is accepted wherever a checkpoint is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rcg_lightning.artifacts import check_format
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.checkpoints import read_checkpoint
from rcg_lightning.pretrained.network_folder import FORMAT, REMEDY, read_folder_description, read_weights, write_folder
from rcg_lightning.types import require

DESCRIPTION = "stage.json"
PARTS = ("generator", "prior", "instances", "autoencoder", "encoder")


def save_stage(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a stage as a folder; it appears complete or not at all.

    Args:
        folder: a new one, or a stage folder to replace.
        content: ``stage`` (description), ``data_spec`` and ``state_dict``, as in a checkpoint.
    """
    weights: dict[str, Tensor] = content["state_dict"]
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    require(not odd, f"{odd[:3]} of this stage are not tensors: it cannot be a folder, keep its checkpoint")
    description = {"format": FORMAT, "stage": content["stage"], "data_spec": content["data_spec"]}
    write_folder(folder, DESCRIPTION, description, weights, "a stage folder")


def stage_content(path: Path) -> dict[str, Any]:
    """Return ``stage``, ``data_spec`` and ``state_dict`` of a checkpoint, a stage folder, or a bundle's generator.

    Raises:
        UserError: nothing at ``path``, another kind of file or folder, a damaged one, or one of an earlier version.
    """
    path = bundle_parts(path).get("generator", Path(path))
    if path.is_dir():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
        require(
            (path / DESCRIPTION).is_file(),
            f"no checkpoint at {path}: the folder holds {found}, but neither {DESCRIPTION} nor a generator/",
        )
        description = read_stage_description(path)
        return {**description, "state_dict": read_weights(path, description, DESCRIPTION)}
    require(path.is_file(), f"no checkpoint at {path}: run the step that writes it, or correct the path")
    return checked_stage(read_checkpoint(path, "a stage"), str(path))


def read_stage_description(folder: Path) -> dict[str, Any]:
    """Return the description in a stage folder, plain data: ``stage``, ``data_spec`` and ``sha256``."""
    return read_folder_description(folder, DESCRIPTION, {"stage", "data_spec"}, "stage")


def checked_stage(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the content of a checkpoint; raise a UserError unless a stage of this version wrote it."""
    if not {"stage", "state_dict"} <= checkpoint.keys():
        keys = ", ".join(sorted(map(str, checkpoint))[:6])
        raise UserError(f"{name} is not a checkpoint of this project (it holds: {keys}): did other code write it?")
    check_format(checkpoint.get("format"), FORMAT, f"the stage in {name}", REMEDY)
    return checkpoint


def bundle_parts(path: Path) -> dict[str, Path]:
    """Return the parts of the bundle at ``path`` by name; an empty dict where it is not a bundle."""
    path = Path(path)
    if not path.is_dir() or (path / DESCRIPTION).is_file():
        return {}
    return {name: path / name for name in PARTS if any((path / name).glob("*.json"))}


def prior_at(path: Path) -> Path:
    """Return the prior of the bundle at ``path``; ``path`` itself where it is not a bundle."""
    return bundle_parts(path).get("prior", Path(path))


def holds_stage(path: Path) -> bool:
    """Whether ``path`` looks like a checkpoint, a stage folder or a bundle with a generator."""
    path = Path(path)
    return path.suffix == ".ckpt" or (path / DESCRIPTION).is_file() or "generator" in bundle_parts(path)

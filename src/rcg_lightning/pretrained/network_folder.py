"""Networks trained here, as a bare folder: what they are in plain data, and their weights."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rcg_lightning.described import Described, construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

DESCRIPTION, WEIGHTS, FORMAT = "network.json", "weights.safetensors", 1


def save_network(folder: Path, module: nn.Module, settings: dict[str, Any]) -> None:
    """Write ``module`` (a ``Described`` one) and plain ``settings``; ``folder`` appears complete or not at all.

    A network folder that is there already is replaced; anything else in its place is left alone.

    Raises:
        UserError: ``folder`` exists and is not a network folder.
    """
    if not isinstance(module, Described):
        raise TypeError(f"{type(module).__name__} is no Described class, so it could not be rebuilt from its folder")
    folder = Path(folder)
    if folder.exists() and not (folder / DESCRIPTION).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a network folder: choose another place for the network")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        save_file({name: plain_copy(tensor) for name, tensor in module.state_dict().items()}, fresh / WEIGHTS)
        description = {
            "format": FORMAT,
            "network": describe(module),
            "settings": describe(settings),
            "sha256": file_digest(fresh / WEIGHTS),
        }
        (fresh / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of ``folder`` on the CPU, with its weights, and its settings.

    Raises:
        UserError: there is no network folder, it is damaged, or its weights do not fit its description.
    """
    folder = Path(folder)
    description = read_description(folder)
    weights = folder / WEIGHTS
    require(weights.is_file(), f"{weights} is missing: copy the whole folder of the network")
    require(
        file_digest(weights) == description["sha256"],
        f"{weights} is not what {DESCRIPTION} beside it describes: it is damaged or was replaced, export it again",
    )
    with torch.random.fork_rng(devices=[]):
        module = construct(description["network"])
    require(isinstance(module, nn.Module), f"{folder / DESCRIPTION} does not describe a network")
    try:
        module.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the weights in {folder} do not fit its network: {reason}") from error
    return module, description["settings"]


def read_description(folder: Path) -> dict[str, Any]:
    """Return the plain description of a network folder: ``network``, ``settings`` and ``sha256``."""
    path = Path(folder) / DESCRIPTION
    require(path.is_file(), f"{folder} is no network folder: it holds no {DESCRIPTION}")
    try:
        description = json.loads(path.read_text())
        complete = {"format", "network", "settings", "sha256"} <= set(description)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    require(complete, f"{path} is not the description of a network")
    require(
        description["format"] == FORMAT,
        f"{path} has format {description['format']}, this version reads {FORMAT}: update the package or export again",
    )
    return description


def plain_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU; a copy, because safetensors takes no tensors that share memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(fresh: Path, folder: Path) -> None:
    """Rename ``fresh`` to ``folder``; what stood there survives under another name until the new one is in place."""
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = fresh.with_name(fresh.name + ".old")
    os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)

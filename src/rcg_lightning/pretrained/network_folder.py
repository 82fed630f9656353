"""Network folders: a network's description as JSON, and its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rcg_lightning.artifacts import file_sha256, fingerprint, replacing_folder, write_json
from rcg_lightning.config import ConfigMixin, construct, describe
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.integrity import read_sealed, sealed
from rcg_lightning.pretrained.checkpoints import check_description
from rcg_lightning.random_state import seeded
from rcg_lightning.types import require

DESCRIPTION, WEIGHTS, FORMAT = "network.json", "weights.safetensors", 2
REMEDY = "make it again with the command that made it, or convert the official file again with rcg convert"


def save_network(folder: Path, module: nn.Module, settings: dict[str, Any]) -> None:
    """Write ``module`` (a ``ConfigMixin`` one) and plain ``settings``; ``folder`` appears complete or not at all.

    An existing network folder is replaced; any other folder or file at its path stays.

    Raises:
        UserError: ``folder`` exists and is not a network folder.
    """
    if not isinstance(module, ConfigMixin):
        raise TypeError(f"{type(module).__name__} is no ConfigMixin class, so it could not be rebuilt from its folder")
    description = {"format": FORMAT, "network": describe(module), "settings": describe(settings)}
    write_folder(folder, DESCRIPTION, description, module.state_dict(), "a network folder")


def write_folder(
    folder: Path, name: str, description: dict[str, Any], tensors: Mapping[str, Tensor], kind: str
) -> None:
    """Write weights and their description as JSON; ``folder`` appears complete or not at all.

    Args:
        folder: a new one, an empty one, or one of the same kind, which is replaced.
        name: file of the description, by which this kind of folder is recognised.
        description: plain data, to which the SHA-256 of the weights is added.
        tensors: the weights.
        kind: name of this kind of folder, for messages.

    Raises:
        UserError: ``folder`` exists and is of another kind.
    """
    with replacing_folder(folder, name, kind) as draft:
        save_file({key: plain_copy(tensor) for key, tensor in tensors.items()}, draft / WEIGHTS)
        write_json(draft / name, sealed({**description, "sha256": file_sha256(draft / WEIGHTS)}))


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of ``folder`` on the CPU, with its weights, and its settings.

    Raises:
        UserError: it is no network folder or damaged, or its weights do not fit its description.
    """
    folder = Path(folder)
    description = read_description(folder)
    weights = read_weights(folder, description, DESCRIPTION)

    def rebuilt() -> nn.Module:
        module = construct(description["network"])
        require(isinstance(module, nn.Module), f"{DESCRIPTION} does not describe a network")
        return module

    check_description(rebuilt, weights, str(folder))
    with seeded(0):
        module = rebuilt()
    module.load_state_dict(weights)
    settings = description["settings"]
    require(isinstance(settings, dict), f"the settings in {folder / DESCRIPTION} are not names and values")
    return module, settings


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description in a network folder, plain data: ``network``, ``settings`` and ``sha256``."""
    return read_folder_description(folder, DESCRIPTION, {"network", "settings"}, "network")


def read_folder_description(folder: Path, name: str, keys: set[str], kind: str) -> dict[str, Any]:
    """Return the description in a folder that ``write_folder`` wrote.

    Args:
        folder: the folder.
        name: file of the description.
        keys: required entries of the description.
        kind: name of the described object, for messages.
    """
    path = Path(folder) / name
    require(path.is_file(), f"{folder} is no {kind} folder: it holds no {name}")
    return read_sealed(path, keys | {"sha256"}, FORMAT, f"the {kind} in {folder}", REMEDY)


def read_weights(folder: Path, description: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the weights in a folder, which must match ``description``, read from its file ``name``."""
    check_digest(folder, description, name)
    weights = Path(folder) / WEIGHTS
    try:
        return load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {one_line(error)}") from error


def check_digest(folder: Path, description: Mapping[str, Any], name: str) -> None:
    """Raise a UserError unless the weights in a folder match their checksum in ``description``, its file ``name``."""
    weights = Path(folder) / WEIGHTS
    require(weights.is_file(), f"{weights} is missing: copy the whole folder")
    require(
        file_sha256(weights) == description["sha256"],
        f"{weights} does not match {name} next to it: it is damaged or was replaced, export it again",
    )


def plain_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU: safetensors takes no tensors that share memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a fingerprint of the names, types, shapes and values of a state dict."""
    tensors = {name: state[name].detach() for name in sorted(state)}
    layout = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    values = (tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data for tensor in tensors.values())
    return fingerprint(layout, values)

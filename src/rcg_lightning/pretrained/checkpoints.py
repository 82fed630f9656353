"""Safe reading of weight files: their containers, their kinds, and whether they fit a network."""

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg_lightning.errors import UserError, one_line
from rcg_lightning.integrity import check_sums, check_torch_file, unless_verified
from rcg_lightning.types import require

State = dict[str, Tensor]
# torch's reader meets damage in a pickle without checksums with almost any of Python's errors
_OF_DAMAGE = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
READING_FAILS = (pickle.UnpicklingError, SafetensorError, *_OF_DAMAGE)


def read_checkpoint(path: Path | None, what: str) -> dict[str, Any]:
    """Return the content of a .safetensors or torch file, on the CPU. Nothing in the file is ever executed.

    Args:
        path: the file; None if ``what`` was rebuilt from a description, which holds no paths.
        what: the owner of the weights, for messages.
    """
    require(path is not None, f"{what} needs its weights: give the path of the file as weights")
    path = Path(path)  # type: ignore[arg-type]
    require(path.is_file(), f"{path} does not exist: give the path of the weights of {what}")
    unless_verified([path], lambda: check_sums(path), "sums")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = read_torch(path)
    except READING_FAILS as error:
        raise UserError(f"{path} cannot be read as a file of weights: {_reason(error)}") from error
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__} instead of weights")
    return dict(content)


def _reason(error: Exception) -> str:
    """Explain why a file cannot be read, and what to do; torch's own message advises to run its content."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"it is damaged or incomplete ({one_line(error, 120)}): fetch or copy it again"
    if "GLOBAL" in str(error):
        return "it holds objects in addition to weights, which are not read: `rcg convert` can leave them out"
    return "its content is something else: give a file of weights"


def read_torch(path: Path) -> Any:
    """Read a torch file without executing anything; memory-mapped where its format allows it.

    Optimizer states, most of a training checkpoint, then take no memory. Every byte is first compared with its
    checksum, once per process.

    Raises:
        UserError: the file is cut short, or differs from its own checksums.
    """
    unless_verified([path], lambda: check_torch_file(path), "torch")
    with torch.serialization.safe_globals([argparse.Namespace]):  # the "args" of DINO, iBOT and RCG files
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def entry(container: Mapping[str, Any], *names: str) -> State:
    """Return the first of the named entries that is a state dict, else the container itself if it is one, else {}."""
    for candidate in (*(container.get(name) for name in names), container):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return dict(candidate)
    return {}


def strip(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors whose name starts with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def recognise(container: Mapping[str, Any]) -> str:
    """Describe the kind of a file in a few words."""
    teacher = entry({"teacher": container.get("teacher")}, "teacher")
    if "teacher" in container:
        return "an iBOT checkpoint" if any("last_layer2" in name for name in teacher) else "a DINO checkpoint"
    state = entry(container, "state_dict", "model", "G_ema", "G", "D")
    prefixes = {
        "module.base_encoder.": "a MoCo v3 checkpoint",
        "model.diffusion_model.res_blocks.": "an RDM checkpoint",
        "first_stage_model.": "an LDM checkpoint",
        "vqgan.": "a MAGE checkpoint",
        "x_embedder.": "a DiT checkpoint",
        "input_blocks.": "an ADM checkpoint",
        "quant_conv.": "an autoencoder of LDM",
        "quantize.embedding.": "a MaskGIT VQGAN",
        "output_layer.": "an IC-GAN generator",
        "blocks.0.0.conv1.": "an IC-GAN discriminator",
        "synthesis.b4.": "an IC-GAN StyleGAN2 generator",
        "b4.conv.": "an IC-GAN StyleGAN2 discriminator",
        "blocks.0.attn.qkv.": "the weights of a plain Vision Transformer",
    }
    for prefix, kind in prefixes.items():
        if any(name.startswith(prefix) for name in state):
            return kind
    names = list(state or container)
    return f"a file with {len(names)} entries ({', '.join(map(str, names[:4]))}, ...)"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give ``module`` exactly these tensors; they replace its own, so it may have been built without memory.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    require_fit(module.state_dict(), state, where, type(module).__name__)
    # a copy: a mapped file may be replaced while the network is in use
    module.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str, what: str) -> None:
    """Raise UserError unless ``state``, from ``where``, has the names and shapes of ``own``, those of ``what``."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "not expected": extra, "of another shape": other}
    found = "; ".join(f"{len(names)} {fault}: {', '.join(names[:3])}" for fault, names in faults.items() if names)
    require(not found, f"{where} does not fit {what}: {found}")


def check_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raise UserError where weights belong to other networks: those of the same class with other settings."""
    mine = {name: getattr(value, "shape", None) for name, value in module.state_dict().items()}
    theirs = {name: getattr(value, "shape", None) for name, value in weights.items()}
    wrong = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name, 0) != theirs.get(name, 0))
    if wrong:
        raise UserError(
            f"the checkpoint belongs to other networks ({len(wrong)} tensors differ, such as {wrong[0]}): give the "
            "settings it was trained with, or another checkpoint"
        )


def check_description(rebuild: Callable[[], nn.Module], weights: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless a file's description builds networks of the sizes of its weights.

    The networks are built without memory first: a description may ask for any size.
    """
    try:
        with torch.device("meta"):
            check_weights(rebuild(), weights)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a damaged or made-up description can fail anywhere
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise UserError(f"{where}: its description cannot be rebuilt ({reason}): the file is damaged") from error

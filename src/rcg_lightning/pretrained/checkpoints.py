"""Reading the official files: their containers, what they are, and the key map of the RDM."""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg_lightning.errors import UserError
from rcg_lightning.types import require

State = dict[str, Tensor]
READING_FAILS = (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, OSError)


def read_checkpoint(path: Path | None, what: str) -> dict[str, Any]:
    """Return the content of a .safetensors or torch file, on the CPU. Nothing in the file is ever executed.

    Args:
        path: the file; None where a description of ``what`` did not travel with its path.
        what: whose weights these are, for messages.
    """
    require(path is not None, f"{what} needs its weights: give the path of the file as weights")
    path = Path(path)  # type: ignore[arg-type]
    require(path.is_file(), f"{path} does not exist: give the path of the weights of {what}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = read_torch(path)
    except READING_FAILS as error:
        raise UserError(f"{path} cannot be read as a file of weights: {_reason(error)}") from error
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__} instead of weights")
    return dict(content)


def _reason(error: Exception) -> str:
    """What is wrong with a file, and what to do; torch's own words advise to run what is in it."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"it is damaged or incomplete ({' '.join(str(error).split())[:120]}): fetch or copy it again"
    if "GLOBAL" in str(error):
        return "it holds objects besides weights, which are not read: `rcg convert` can leave them out"
    return "its content is something else: give a file of weights"


def read_torch(path: Path) -> Any:
    """Read a torch file without executing anything; memory-mapped where its format allows it.

    Mapped, the optimizer states of a training checkpoint, most of such a file, are never read.
    """
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


def ema_or_last(official: Mapping[str, Any], ema: bool) -> State:
    """Return one of the two state dicts in a file of the official DiT or ADM; {} where it has no such."""
    state = entry({"it": official.get("model_ema" if ema else "model")}, "it") if "model" in official else {}
    return state or entry(official)


def strip(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors whose name starts with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def recognise(container: Mapping[str, Any]) -> str:
    """Say in a few words what kind of file this is, for messages about a wrong one."""
    teacher = entry({"teacher": container.get("teacher")}, "teacher")
    if "teacher" in container:
        return "an iBOT checkpoint" if any("last_layer2" in name for name in teacher) else "a DINO checkpoint"
    state = entry(container, "state_dict", "model", "G_ema", "G", "D")
    signs = {
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
    for sign, kind in signs.items():
        if any(name.startswith(sign) for name in state):
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
    """Raise UserError unless ``state``, from ``where``, has the names and shapes of ``own``, which is of ``what``."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "not expected": extra, "of another shape": other}
    found = "; ".join(f"{len(names)} {fault}: {', '.join(names[:3])}" for fault, names in faults.items() if names)
    require(not found, f"{where} does not fit {what}: {found}")


@dataclass(frozen=True)
class RDMState:
    """An official RDM in the names used here.

    Attributes:
        network: weights for ``networks.rdm_mlp``.
        class_embedding: (classes, width); one row that nothing reads in an unconditional model.
        schedule: the noise schedule's tables, (1000,) float32 each.
        encoder: weights of the frozen encoder that the representations come from, in official names.
    """

    network: State
    class_embedding: Tensor
    schedule: State
    encoder: State


RDM_NETWORK = "model.diffusion_model."
EMBEDDING = "cond_stage_model.embedding.weight"  # the class table of RDM and LDM
RDM_BLOCK = {
    "in_layers.0": "in_norm",
    "in_layers.2": "in_linear",
    "emb_layers.1": "time",
    "context_layers.1": "condition",
    "out_layers.0": "out_norm",
    "out_layers.3": "out_linear",
}
RDM_OUTPUT = {"out.0": "out_norm", "out.2": "out_linear"}


def rdm_state(official: Mapping[str, Any], ema: bool = True) -> RDMState:
    """Translate the content of an official RDM file.

    Args:
        official: what ``read_checkpoint`` returned.
        ema: the EMA weights, which the official code samples with, or those of the last step. The class embedding
            has no average.
    """
    state = entry(official, "model", "state_dict")
    names = latent_diffusion_names(state, ema)
    require(f"{RDM_NETWORK}input_proj.weight" in state, f"this is no RDM checkpoint but {recognise(official)}")
    require(EMBEDDING in state, f"this RDM checkpoint has no {EMBEDDING}")
    network = {rdm_name(name): state[key] for name, key in names.items()}
    return RDMState(network, state[EMBEDDING], schedule_tables(state), strip(state, "pretrained_encoder."))


def latent_diffusion_names(state: Mapping[str, Tensor], ema: bool) -> dict[str, str]:
    """Name in the network to name in ``state``, for the files of the official RDM and LDM.

    Averages lie in the same state dict, under their parameter's name without its dots.

    Raises:
        UserError: EMA weights are asked for and absent.
    """
    names = {key.removeprefix(RDM_NETWORK): key for key in state if key.startswith(RDM_NETWORK)}
    if not ema:
        return names
    names = {name: "model_ema." + f"diffusion_model.{name}".replace(".", "") for name in names}
    absent = [key for key in names.values() if key not in state]
    require(not absent, f"this checkpoint has no EMA weights ({absent[:1]} is missing): read it with ema off")
    return names


def schedule_tables(state: Mapping[str, Tensor]) -> State:
    """The noise schedule's tables in a file of the official RDM or LDM."""
    return {name: tensor for name, tensor in state.items() if "." not in name}


def rdm_name(official: str) -> str:
    """Translate one parameter's name: ``res_blocks.3.in_layers.0.weight`` -> ``blocks.3.in_norm.weight``."""
    return renamed(official, "res_blocks.", RDM_BLOCK, RDM_OUTPUT)


def official_rdm(network: Mapping[str, Tensor]) -> State:
    """Invert the names of ``rdm_state``'s network, without the prefix that they have in the file."""
    back = (inverted(RDM_BLOCK), inverted(RDM_OUTPUT))
    return {renamed(name, "blocks.", *back, into="res_blocks."): tensor for name, tensor in network.items()}


def renamed(
    official: str, blocks: str, inside: Mapping[str, str], outside: Mapping[str, str], into: str = "blocks."
) -> str:
    """Translate a parameter's name: its layer by ``inside`` within a numbered block, by ``outside`` elsewhere.

    Args:
        official: such as ``res_blocks.3.in_layers.0.weight``.
        blocks: what the official names of blocks begin with.
        inside: official layer of a block to ours.
        outside: the same for layers outside the blocks; what it does not list keeps its name.
        into: what the names of blocks begin with afterwards.
    """
    name, _, kind = official.rpartition(".")
    if not name.startswith(blocks):
        return f"{outside.get(name, name)}.{kind}"
    number, layer = name.removeprefix(blocks).split(".", 1)
    require(layer in inside, f"{official} is no layer of a block that is known here")
    return f"{into}{number}.{inside[layer]}.{kind}"


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """Return the way back of a map of names, for ``renamed``."""
    return {ours: official for official, ours in names.items()}

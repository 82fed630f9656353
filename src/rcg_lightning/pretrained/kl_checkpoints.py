"""Reading of Stable Diffusion's KL autoencoder by diffusers, an optional dependency; sizes of the original layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from rcg_lightning.errors import UserError, one_line
from rcg_lightning.integrity import check_sums
from rcg_lightning.pretrained.checkpoints import entry, read_checkpoint, recognise, strip
from rcg_lightning.pretrained.downloads import hub_file
from rcg_lightning.types import require

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
USE = "it is used as it is: give it as --autoencoder to rcg sample, evaluate and sweep, in a config as codec.folder"
FAILURES = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def load_kl(source: Path | str) -> nn.Module:
    """Return a diffusers ``AutoencoderKL``.

    Args:
        source: a folder in diffusers' layout, or a single file in the original layout (alone, or a whole Stable
            Diffusion); or a name on the Hugging Face hub.

    Raises:
        UserError: diffusers is missing, or the source holds no complete autoencoder.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("KL latents need diffusers: pip install 'rcg-lightning[latents]'") from error
    try:
        if isinstance(source, Path) and source.is_file():
            return _from_file(AutoencoderKL, source)
        folder = source if isinstance(source, Path) or Path(source).is_dir() else _from_hub(source)
        readable = (Path(folder) / "config.json").is_file()
        require(readable, f"{source} holds no KL autoencoder: give a folder with config.json, or a file of weights")
        check_sums(Path(folder))
        kind: Any = AutoencoderKL
        model, report = kind.from_pretrained(
            str(folder), output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
        )
    except FAILURES as error:
        reason = one_line(error, 200)
        raise UserError(f"{source} cannot be read as a KL autoencoder: {reason}") from error
    wrong = [str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[kind]]
    require(not wrong, f"{source} holds another autoencoder or a part of one: {', '.join(wrong[:3])} do not fit")
    return model


def _from_hub(name: str) -> Path:
    """Return the folder in the hub's cache that holds config and weights of a repository, fetched if necessary."""
    what, use = f"the weights of {name}", "give its folder, with config.json"
    weights = hub_file(name, WEIGHTS, None, what, use)
    # of the same commit, which the folder is named by
    return hub_file(name, ["config.json"], weights.parent.name, what, use).parent


def _from_file(kind: Any, path: Path) -> nn.Module:
    """Read a single file in the original layout; its shapes determine the network's sizes."""
    content = read_checkpoint(path, "the KL autoencoder")
    state = entry(content, "state_dict", "model")
    state = strip(state, "first_stage_model.") or state
    state = {name: tensor for name, tensor in state.items() if name.startswith(PARTS)}
    require(
        {"encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "quant_conv.weight"} <= state.keys(),
        f"{path} holds no KL autoencoder in the original layout, it is {recognise(content)}; one in diffusers' layout "
        "is given as a folder",
    )
    embed_dim, z_channels = (size // 2 for size in state["quant_conv.weight"].shape[:2])  # a mean and a deviation each
    require(
        embed_dim == z_channels,
        f"{path} holds a KL autoencoder of z_channels {z_channels} and embed_dim {embed_dim}: diffusers, which reads "
        "it, knows equal ones only",
    )
    model = kind.from_single_file(dict(state), original_config=_config(state), low_cpu_mem_usage=False)
    found, expected = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (state, model.state_dict()))
    require(
        found == expected,
        f"{path} holds {found} of an autoencoder's {expected} values: it is damaged, or of another kind",
    )
    return model


def is_kl(official: Mapping[str, Tensor]) -> bool:
    """Whether tensors in the original layout are of a KL autoencoder: it encodes a mean and a deviation."""
    before, after = official.get("quant_conv.weight"), official.get("post_quant_conv.weight")
    return before is not None and after is not None and len(before) == 2 * after.shape[1]


def autoencoder_sizes(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return ``channels``, ``width``, ``multipliers`` and ``blocks`` of an autoencoder in the original layout."""
    width, channels = official["encoder.conv_in.weight"].shape[:2]
    levels, blocks = _count(official, "encoder.down.{}."), _count(official, "encoder.down.0.block.{}.")
    widths = [len(official[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)]
    return {
        "channels": channels,
        "width": width,
        "multipliers": [out // width for out in widths],
        "blocks": blocks,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Count the numbers 0, 1, 2, ... that fill ``pattern`` to the beginning of a name."""
    count = 0
    while any(name.startswith(pattern.format(count)) for name in state):
        count += 1
    return count


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration that the original code reads from its YAML."""
    sizes = autoencoder_sizes(state)
    ddconfig = {
        "in_channels": sizes["channels"],
        "out_ch": len(state["decoder.conv_out.weight"]),
        "ch": sizes["width"],
        "ch_mult": sizes["multipliers"],
        "num_res_blocks": sizes["blocks"],
        "z_channels": len(state["post_quant_conv.weight"]),
    }
    return {"model": {"params": {"first_stage_config": {"params": {"ddconfig": ddconfig}}}}}

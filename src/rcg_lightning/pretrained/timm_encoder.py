"""Encoders from timm: any of its models, by name."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn
from torch.func import functional_call

from rcg_lightning.arguments import ImageSize
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.pretrained.checkpoints import State, entry, read_checkpoint
from rcg_lightning.pretrained.downloads import hub_file
from rcg_lightning.pretrained.encoders import Encoder, LoadedEncoder
from rcg_lightning.pretrained.normalisation import Normalisation
from rcg_lightning.pretrained.timm_preprocess import TimmPreprocess
from rcg_lightning.types import require

UNFIT = (RuntimeError, TypeError, KeyError, ValueError, AssertionError, AttributeError)  # raised by timm's constructors


class TimmEncoder(Encoder):
    """A timm model without its classifier. Images are prepared as timm prepares them for evaluation.

    Size, crop, interpolation, mean and deviation are those of the model's published configuration.

    Args:
        name: as timm knows it, with the tag of its weights: ``vit_base_patch14_dinov2.lvd142m``.
        weights: a local file; by default the published weights, from the hub's cache or the hub itself.
        pretrained: whether to use weights; without them the network is random but always the same.
        pool: timm's name of a pooling that replaces the model's own: ``token`` or ``avg``.
        size: height and width of the network's input where the published one is too large or too small.
        normalise: from the network's output to the representation, ``PerSample`` by default.
        precision: see ``Encoder``.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        pretrained: bool = True,
        pool: str | None = None,
        size: ImageSize | None = None,
        normalise: Normalisation | None = None,
        precision: FrozenPrecision = "highest",
    ) -> None:
        super().__init__(normalise, precision)
        self.name, self.weights, self.pretrained, self.pool, self.size = name, weights, pretrained, pool, size

    def load(self) -> LoadedEncoder:
        config = published_config(self.name)
        path = (self.weights or published_file(self.name, config)) if self.pretrained else None
        state = entry(read_checkpoint(path, self.name), "state_dict", "model") if path else None
        data = resolve_data_config(pretrained_cfg=config.to_dict())
        height, width = input_size(config, self.size)
        preprocess = TimmPreprocess(
            data["mean"], data["std"], (height, width), data["crop_pct"], data["crop_mode"], data["interpolation"]
        )
        network, dim = self.build(config, state, path, (height, width))
        return LoadedEncoder(
            network=network,
            preprocess=preprocess,
            dim=dim,
            structure=structure(self.name, self.pool, (height, width)),
            loaded={"backbone": len(network.state_dict())} if path else {},
            notes=(f"from {path}",) if path else ("the weights are random: pretrained is off",),
        )

    def build(
        self, config: Any, state: State | None, path: Path | None, size: tuple[int, int]
    ) -> tuple[nn.Module, int]:
        """Return the network without its classifier, for images of ``size``, and the dimensions of its output.

        Networks with a table of positions are built for a size; the others take no ``img_size``, and images of any.
        If ``state`` is given, every tensor comes from it.
        """
        reasons = []
        for options in ({},) if self.size is None else ({"img_size": self.size}, {}):
            try:
                network = self.create(config, state, options)
                return network, output_dim(network, size)
            except UNFIT as error:
                reason = one_line(error)
                reasons += [] if "img_size" in options and "img_size" in reason else [(reason, error)]
        reason, error = reasons[0]
        wanted = "" if self.size is None else f" for images of {self.size} pixels a side"
        source = f" from {path}" if path else ""
        advice = "" if self.size is None else "; choose another size, or leave it out"
        raise UserError(f"timm cannot build {self.name}{source}{wanted}: {reason}{advice}") from error

    def create(self, config: Any, state: State | None, options: dict[str, Any]) -> nn.Module:
        """Return timm's network without its classifier, made with ``options``."""
        if state is not None:
            # with the file's number of classes timm loads strictly: no tensor stays random unnoticed
            headless = bool(config.classifier) and not any(name.startswith(config.classifier) for name in state)
            classes = 0 if headless else config.num_classes
            overlay = {"state_dict": state, "num_classes": classes}
            options = {**options, "pretrained": True, "num_classes": classes, "pretrained_cfg_overlay": overlay}
        network: Any = timm.create_model(self.name, **options)
        network.pretrained_cfg.pop("state_dict", None)  # it would hold a second copy of all weights
        network.reset_classifier(0, *([] if self.pool is None else [self.pool]))
        return network


class TimmNetwork(ConfigMixin, nn.Module):
    """A timm model without its classifier, whose weights lie in a network folder: so it needs no hub.

    Args:
        name, pool, size: see ``TimmEncoder``.
    """

    def __init__(self, name: str, pool: str | None = None, size: ImageSize | None = None) -> None:
        super().__init__()
        config = published_config(name)
        found = input_size(config, size)
        encoder = TimmEncoder(name, pretrained=False, pool=pool, size=size)
        self.model, self.dim = encoder.build(config, None, None, found)
        self.structure = structure(name, pool, found)

    def forward(self, image: Tensor) -> Tensor:
        """Preprocessed images (B, C, H, W) -> (B, dim)."""
        return self.model(image)


def structure(name: str, pool: str | None, size: tuple[int, int]) -> dict[str, Any]:
    """Describe a timm model without its weights, for its identity."""
    return {"timm": name, "pool": pool, "size": list(size)}


def input_size(config: Any, size: int | None) -> tuple[int, int]:
    """Return height and width of a model's input: the published ones, or ``size`` for both."""
    height, width = resolve_data_config(pretrained_cfg=config.to_dict())["input_size"][1:]
    return (height, width) if size is None else (size, size)


def output_dim(network: nn.Module, size: tuple[int, int]) -> int:
    """Return the dimensions of a network's output for images of ``size``, computed without memory."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with torch.no_grad():
        output = functional_call(network.eval(), shapes, (torch.empty(1, 3, *size, device="meta"),))
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise ValueError(f"it gives {tuple(getattr(output, 'shape', ())) or type(output).__name__}, not one vector")
    return output.shape[1]


def published_config(name: str) -> Any:
    """Return timm's configuration of a model; raise UserError for a name that timm does not know."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"{error}: timm has {', '.join(tags(name))}") from error
    if config is None:
        similar = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(f"timm has no model {name!r}: did you mean {' or '.join(similar) or 'another name'}?")
    return config


def tags(name: str) -> list[str]:
    """Return the weights that timm has for the architecture of ``name``."""
    return timm.list_pretrained(f"{name.split('.')[0]}.*")[:8] or ["no weights for it"]


def published_file(name: str, config: Any) -> Path:
    """Return the file of a model's published weights, downloaded from the hub if it is not in the cache."""
    require(
        bool(config.hf_hub_id),
        f"timm has no hub address for the weights of {name}: fetch {config.url or 'them'} and give the file as weights",
    )
    repository, _, revision = config.hf_hub_id.partition("@")
    wanted = config.hf_hub_filename or "pytorch_model.bin"
    candidates = [wanted.replace("pytorch_model.bin", "model.safetensors"), wanted]
    return hub_file(repository, candidates, revision or None, f"the weights of {name}", "give it as weights")

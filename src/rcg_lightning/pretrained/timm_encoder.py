"""Encoders from timm: any of its models, by name."""

import difflib
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from rcg_lightning.arguments import ImageSize
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.checkpoints import State, entry, read_checkpoint
from rcg_lightning.pretrained.downloads import hub_file
from rcg_lightning.pretrained.encoders import Encoder, LoadedEncoder
from rcg_lightning.pretrained.normalisation import Normalisation
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.types import require


class TimmEncoder(Encoder):
    """A timm model without its classifier. Mean, deviation, size and crop are those of its published configuration.

    Args:
        name: as timm knows it, with the tag of its weights: ``vit_base_patch14_dinov2.lvd142m``.
        weights: a local file; by default the published weights, from the hub's cache or the hub itself.
        pretrained: whether to use weights; without them the network is random but always the same.
        pool: timm's name of a pooling that replaces the model's own: ``token`` or ``avg``.
        size: height and width of the network's input where the published one is too large or too small.
        normalise: from the network's output to the representation, ``PerSample`` by default.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        pretrained: bool = True,
        pool: str | None = None,
        size: ImageSize | None = None,
        normalise: Normalisation | None = None,
    ) -> None:
        super().__init__(normalise)
        self.name, self.weights, self.pretrained, self.pool, self.size = name, weights, pretrained, pool, size

    def load(self) -> LoadedEncoder:
        config = published_config(self.name)
        path = (self.weights or published_file(self.name, config)) if self.pretrained else None
        state = entry(read_checkpoint(path, self.name), "state_dict", "model") if path else None
        network = self.build(config, state, path)
        data = resolve_data_config(pretrained_cfg=config.to_dict())
        size = self.size or data["input_size"][-1]
        preprocess = Preprocess(
            data["mean"], data["std"], size, data["crop_pct"], antialias=True, interpolation=data["interpolation"]
        )
        return LoadedEncoder(
            network=network,
            preprocess=preprocess,
            dim=getattr(network, "head_hidden_size", network.num_features),  # type: ignore[arg-type]
            structure={"timm": self.name, "pool": self.pool, "size": size},
            loaded={"backbone": len(network.state_dict())} if path else {},
            notes=(f"from {path}",) if path else ("the weights are random: pretrained is off",),
        )

    def build(self, config: Any, state: State | None, path: Path | None) -> nn.Module:
        """Return the network without its classifier; if ``state`` is given, every tensor comes from it."""
        options: dict[str, Any] = {} if self.size is None else {"img_size": self.size}
        if state is not None:
            # with the file's number of classes timm loads strictly: no tensor stays random unnoticed
            headless = bool(config.classifier) and not any(name.startswith(config.classifier) for name in state)
            classes = 0 if headless else config.num_classes
            overlay = {"state_dict": state, "num_classes": classes}
            options |= {"pretrained": True, "num_classes": classes, "pretrained_cfg_overlay": overlay}
        network: Any
        try:
            network = timm.create_model(self.name, **options)
        except (RuntimeError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            source = f" from {path}" if path else ""
            raise UserError(f"timm cannot build {self.name}{source}: {reason}") from error
        network.pretrained_cfg.pop("state_dict", None)  # it would hold a second copy of all weights
        if self.pool is None:
            network.reset_classifier(0)
        else:
            network.reset_classifier(0, self.pool)
        return network


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

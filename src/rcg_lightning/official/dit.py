"""RCG's DiT."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Ancestral, LinspaceSpacing
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import SIZES, DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.official.base import Native, OfficialFile, Part
from rcg_lightning.official.building import Conditioning, Weights, built, conditioning, has_ema, heads_of, stage_part
from rcg_lightning.pretrained.checkpoints import ema_or_last
from rcg_lightning.pretrained.codecs import KLLatents, Pixels
from rcg_lightning.pretrained.dit_layout import LABELS, POSITIONS, dit_state, official_dit
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.generator import TRAINED
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Condition, DataSpec, require

SHRINKS, COLOURS = 8, 3  # sides of a image over those of its KL latent; channels of a image
HEADS = {width: heads for width, _, heads in SIZES.values()}
CHANGED = {
    r"(t_embedder\.mlp\.2\.bias|y_embedder\.embedding_table\.weight)$": "the one label is added to the level's bias",
}


class DiTFile(OfficialFile):
    """DiT on KL latents (or on pixels, by its channels). Sampled by 250 ancestral steps, guided on three channels.

    Args:
        heads: attention heads, for unpublished widths.
        condition: of the model, where the file misleads: a null representation looks like RepresentationCondition,
            several labels like ClassCondition, neither like NoCondition.
        classes: how many classes a table of labels is of, where it does not end in a row for none.
    """

    called = "a DiT checkpoint"
    marks = (DiT,)
    ignored: ClassVar[dict[str, str]] = {
        rf"(model\.|model_ema\.)?{POSITIONS}$": "the fixed position table, which is computed",
        r"(model\.|model_ema\.)?(rep_embedder|y_embedder|fake_latent)": "the embedding of a condition it has not",
    }

    def __init__(
        self, heads: int | None = None, condition: Condition | None = None, classes: int | None = None
    ) -> None:
        self.heads, self.condition, self.classes = heads, condition, classes

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        tensors = ema_or_last(content, ema=False)
        condition = self.conditioning(tensors)
        trained = dit_state(content, condition.parts, ema=False)
        averaged = dit_state(content, condition.parts) if has_ema(content) else None
        shape, learned, network = self.structure(tensors, where)
        latent = shape[0] != COLOURS
        droppable = any(name.endswith(".fake") for name in trained.conditioner) or (
            condition.classes is not None and len(tensors[LABELS]) > condition.classes
        )
        stage = DiffusionStage(
            codec=KLLatents() if latent else Pixels(),
            condition=condition.condition,
            denoiser=Denoiser(network, LinearSchedule(), Noise(), learned_variance=learned),
            conditioner=Conditioner(drop=0.1 if droppable else 0.0),
            optimizer=AdamW(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0),
            sampler=Ancestral(250, LinspaceSpacing()),
            guidance=Guidance(channels=3) if latent else None,
            ema=EMA(0.9999),
        )
        columns = {"latent": {"shape": [2 * shape[0], *shape[1:]], "moments": True}} if latent else {}
        sides = (SHRINKS * shape[1], SHRINKS * shape[2]) if latent else shape[1:]
        built(stage, DataSpec((COLOURS, *sides), condition.classes, columns | condition.columns))
        ema_weights = averaged and Weights(averaged.network, averaged.conditioner)
        weights = Weights(trained.network, trained.conditioner)
        changed = {} if condition.parts else CHANGED
        return {"generator": stage_part(stage, network, weights, ema_weights, where, changed=changed)}

    def conditioning(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Return the condition: what was given, else what the tensors look like."""
        if LABELS not in tensors:
            return conditioning(None, None)  # the layout says what is wrong with such a file
        rows = len(tensors[LABELS])
        numbers = tensors["rep_embedder.weight"].shape[1] if "rep_embedder.weight" in tensors else None
        classes = self.classes or (rows if rows % 10 == 0 else rows - 1)  # such as 1001: 1000 and none
        kind = type(self.condition) if self.condition is not None else None
        if kind is RepresentationCondition or (kind is None and rows == 1 and "fake_latent" in tensors):
            return conditioning(numbers, None)
        by_class = kind is ClassCondition or (kind is None and rows > 1)
        return conditioning(None, classes if by_class else None)

    def structure(self, tensors: Mapping[str, Tensor], where: str) -> tuple[tuple[int, int, int], bool, DiT]:
        """Return the shape of what is modelled, whether the variance is learned, and the network, not built."""
        width, channels, patch = tensors["x_embedder.proj.weight"].shape[:3]
        side = patch * round(tensors[POSITIONS].shape[1] ** 0.5)
        out = tensors["final_layer.linear.weight"].shape[0] // patch**2
        depth = sum(name.endswith(".attn.qkv.weight") for name in tensors)
        ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
        heads = heads_of(width, self.heads, HEADS, where)
        return (channels, side, side), out == 2 * channels, DiT(patch, width, depth, heads, ratio)

    def official(self, native: Native) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, DiffusionStage)
        shape = tuple(stage.codec.shape(stage.spec))  # type: ignore[arg-type]
        require(len(shape) == 3 and shape[1] == shape[2], f"{native.path}: the official DiT is square, not {shape}")
        ema_name = stage.ema_names[0]
        return {"model": _state(stage, TRAINED), "model_ema": _state(stage, ema_name), "epoch": 0}


def _state(stage: DiffusionStage, ema_name: str) -> dict[str, Tensor]:
    denoiser, conditioner = stage.for_sampling(ema_name)
    network = denoiser.network
    assert isinstance(network, DiT)
    return official_dit(network.state_dict(), conditioner.state_dict(), torch.as_tensor(network.positions))

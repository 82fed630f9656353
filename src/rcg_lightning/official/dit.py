"""RCG's DiT, on KL latents or pixels."""

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
from rcg_lightning.official.base import FilePart, NativeModel, OfficialFile
from rcg_lightning.official.building import (
    FileCondition,
    Weights,
    built,
    ema_or_last,
    file_condition,
    has_ema,
    heads_of,
    stage_part,
)
from rcg_lightning.official.key_map import inverted, renamed
from rcg_lightning.pretrained.checkpoints import State, recognise
from rcg_lightning.pretrained.codecs import KLLatents, Pixels
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.generator import TRAINED
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require

BLOCK = {
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "adaLN_modulation.1": "modulation.1",
}
OUTSIDE = {
    "x_embedder.proj": "embed",
    "t_embedder.mlp.0": "time_embed.0",
    "t_embedder.mlp.2": "time_embed.2",
    "final_layer.adaLN_modulation.1": "out_modulation.1",
    "final_layer.linear": "out_linear",
}
POSITIONS, LABELS, NULL = "pos_embed", "y_embedder.embedding_table.weight", "fake_latent"
REPRESENTATION = {f"rep_embedder.{kind}": f"parts.0.linear.{kind}" for kind in ("weight", "bias")}
DOWNSAMPLING, COLOURS = 8, 3  # of the KL autoencoder: pixels for each latent, channels of an image
HEADS = {width: heads for width, _, heads in SIZES.values()}
CHANGED = {rf"(t_embedder\.mlp\.2\.bias|{LABELS})$": "the one label is added to the bias of the timestep embedding"}


class DiTFile(OfficialFile):
    """DiT on KL latents (or on pixels, by its channels). Sampled by 250 ancestral steps, guided on three channels.

    Args:
        heads: attention heads, for unpublished widths.
        condition: of the model, where the file misleads: a null representation suggests RepresentationCondition,
            several labels ClassCondition, neither NoCondition.
        classes: number of classes, if the label table does not end in a row for the null class.
    """

    description = "a DiT checkpoint"
    native_classes = (DiT,)
    ignored: ClassVar[dict[str, str]] = {
        rf"(model\.|model_ema\.)?{POSITIONS}$": "the fixed position table, which is computed",
        rf"(model\.|model_ema\.)?(rep_embedder|y_embedder|{NULL})": "the embedding of a condition that it lacks",
    }

    def __init__(
        self, heads: int | None = None, condition: Condition | None = None, classes: int | None = None
    ) -> None:
        self.heads, self.condition, self.classes = heads, condition, classes

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        tensors = ema_or_last(content, ema=False)
        condition = self.file_condition(tensors)
        last = dit_weights(content, condition.parts, ema=False)
        ema = dit_weights(content, condition.parts) if has_ema(content) else None
        (channels, side), learned_variance, network = self.structure(tensors, where)
        latent = channels != COLOURS
        droppable = any(name.endswith(".fake") for name in last.conditioner) or (
            condition.classes is not None and len(tensors[LABELS]) > condition.classes
        )
        stage = DiffusionStage(
            codec=KLLatents() if latent else Pixels(),
            condition=condition.condition,
            denoiser=Denoiser(network, LinearSchedule(), Noise(), learned_variance=learned_variance),
            conditioner=Conditioner(drop=0.1 if droppable else 0.0),
            optimizer=AdamW(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0),
            sampler=Ancestral(250, LinspaceSpacing()),
            guidance=Guidance(channels=3) if latent else None,
            ema=EMA(0.9999),
        )
        columns = {"latent": {"shape": [2 * channels, side, side], "moments": True}} if latent else {}
        pixels = DOWNSAMPLING * side if latent else side
        built(stage, DataSpec((COLOURS, pixels, pixels), condition.classes, columns | condition.columns))
        changed = {} if condition.parts else CHANGED
        return {"generator": stage_part(stage, network, last, ema, where, changed=changed)}

    def file_condition(self, tensors: Mapping[str, Tensor]) -> FileCondition:
        """Return the condition as given, else as the tensors suggest."""
        if LABELS not in tensors:
            return file_condition(None, None)  # ``dit_weights`` rejects such a file with a reason
        rows = len(tensors[LABELS])
        dim = tensors["rep_embedder.weight"].shape[1] if "rep_embedder.weight" in tensors else None
        classes = self.classes or (rows if rows % 10 == 0 else rows - 1)  # such as 1001: 1000 and the null class
        kind = type(self.condition) if self.condition is not None else None
        if kind is RepresentationCondition or (kind is None and rows == 1 and NULL in tensors):
            return file_condition(dim, None)
        by_class = kind is ClassCondition or (kind is None and rows > 1)
        return file_condition(None, classes if by_class else None)

    def structure(self, tensors: Mapping[str, Tensor], where: str) -> tuple[tuple[int, int], bool, DiT]:
        """Return channels and side of z, whether the variance is learned, and the network, not built."""
        width, channels, patch = tensors["x_embedder.proj.weight"].shape[:3]
        side = patch * round(tensors[POSITIONS].shape[1] ** 0.5)
        out = tensors["final_layer.linear.weight"].shape[0] // patch**2
        depth = sum(name.endswith(".attn.qkv.weight") for name in tensors)
        ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
        heads = heads_of(width, self.heads, HEADS, where)
        return (channels, side), out == 2 * channels, DiT(patch, width, depth, heads, ratio)

    def official(self, native: NativeModel) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, DiffusionStage)
        shape = tuple(stage.codec.shape(stage.spec))  # type: ignore[arg-type]
        require(len(shape) == 3 and shape[1] == shape[2], f"{native.path}: the official DiT is square, not {shape}")
        names = {"model": TRAINED, "model_ema": stage.ema_names[0]}
        return {**{key: _official_weights(stage, name) for key, name in names.items()}, "epoch": 0}


def dit_weights(official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True) -> Weights:
    """Translate the content of an official DiT file, for ``networks.dit.DiT`` and a ``Conditioner``.

    The official network adds a label's embedding to that of the timestep even where there are no classes. An
    unconditional network here has no label, so the one row is added to the last bias of the timestep embedding, which
    is the same sum.

    Args:
        official: as ``read_checkpoint`` returns it.
        parts: of the condition that the model was trained with, which the file does not determine: none, ``Classes``
            or ``Vector``. With a vector the official code leaves the label's embedding out.
        ema: the EMA weights, which the official code samples with, or those of the last step.

    Raises:
        UserError: it is another kind of file, or the condition does not fit it.
    """
    state = ema_or_last(official, ema)
    wanted = f"{'EMA weights' if ema else 'weights'} of a DiT"
    require("x_embedder.proj.weight" in state, f"this holds no {wanted}, it is {recognise(official)}")
    inside = (name for name in state if name.startswith("blocks.") or name.rpartition(".")[0] in OUTSIDE)
    network = {dit_name(name): state[name] for name in inside}
    conditioner = _conditioner(state, parts)
    if not parts:
        network["time_embed.2.bias"] = network["time_embed.2.bias"] + state[LABELS][0]
    return Weights(network, conditioner)


def official_dit(
    network: Mapping[str, Tensor],
    conditioner: Mapping[str, Tensor],
    positions: Tensor,
    representation_dim: int = 256,
) -> State:
    """Invert ``dit_weights``: return one state dict, such as the official files hold as ``model`` and ``model_ema``.

    The official network always owns a label table and a map of representations; the one that this model was trained
    without is written as zeros. An unconditional model adds its only label's embedding, so that row is zero too: its
    original value stays in the bias that it was added to.

    Args:
        network: state dict of a ``DiT``.
        conditioner: state dict of its ``Conditioner``, of one part at most.
        positions: the position table of the network (1, N, D).
        representation_dim: size of a representation, for a model that reads none.

    Raises:
        UserError: the condition has several parts, which the official layout lacks.
    """
    official = {**inverted(REPRESENTATION), "parts.0.table.weight": LABELS, "parts.0.fake": NULL}
    foreign = sorted(conditioner.keys() - official.keys())
    require(not foreign, f"an official DiT has one condition at most, and no equivalent of {foreign[:2]}")
    names = (inverted(BLOCK), inverted(OUTSIDE))
    state: State = {renamed(name, "blocks.", *names): tensor for name, tensor in network.items()}
    width = positions.shape[2]
    state |= {
        POSITIONS: positions,
        LABELS: positions.new_zeros(1, width),
        "rep_embedder.weight": positions.new_zeros(width, representation_dim),
        "rep_embedder.bias": positions.new_zeros(width),
    }
    return state | {official[name]: tensor for name, tensor in conditioner.items()}


def dit_name(official: str) -> str:
    """Translate one parameter's name: ``blocks.3.mlp.fc1.weight`` -> ``blocks.3.mlp.0.weight``."""
    return renamed(official, "blocks.", BLOCK, OUTSIDE)


def _official_weights(stage: DiffusionStage, ema_name: str) -> State:
    denoiser, conditioner = stage.for_sampling(ema_name)
    network = denoiser.network
    assert isinstance(network, DiT)
    return official_dit(network.state_dict(), conditioner.state_dict(), torch.as_tensor(network.positions))


def _conditioner(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    require(len(parts) < 2, f"an official DiT has one condition at most, not {len(parts)}")
    rows = len(state[LABELS])
    if not parts:
        require(rows == 1, f"this DiT has {rows} labels: it is conditional on classes")
        return {}
    if isinstance(parts[0], Vector):
        width = state["rep_embedder.weight"].shape[1]
        require(width == parts[0].dim, f"this DiT reads representations of {width} dimensions, not {parts[0].dim}")
        names = {**REPRESENTATION, NULL: "parts.0.fake"}
        return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
    assert isinstance(parts[0], Classes)
    fits = rows - parts[0].count in (0, 1)
    require(fits, f"this DiT has {rows} rows for its labels, which do not fit {parts[0].count} classes")
    return {"parts.0.table.weight": state[LABELS]}

"""The key map of RCG's DiT files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State, ema_or_last, recognise, renamed
from rcg_lightning.types import Classes, Part, Vector, require

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
POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"


@dataclass(frozen=True)
class DiTState:
    """An official DiT in the names used here.

    Attributes:
        network: weights for ``networks.dit.DiT``.
        conditioner: weights for a ``Conditioner`` of the parts that were asked for; empty without any.
        skipped: names in the file that nothing reads, by reason.
    """

    network: State
    conditioner: State
    skipped: dict[str, list[str]]


def dit_state(official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True) -> DiTState:
    """Translate the content of an official DiT file.

    The official network adds a label's embedding to that of the level even where there are no classes. An unconditional
    network here has no label, so the one row is added to the last bias of the level embedding, which is the same sum.

    Args:
        official: what ``read_checkpoint`` returned.
        parts: the condition that the model was trained with, which the file does not tell: none, ``Classes`` or
            ``Vector``. With a vector the official code leaves the label's embedding out.
        ema: the EMA weights, which the official code samples with, or those of the last step.

    Raises:
        UserError: no such file, or the condition does not fit it.
    """
    state = ema_or_last(official, ema)
    wanted = f"{'averaged weights' if ema else 'weights'} of a DiT"
    require("x_embedder.proj.weight" in state, f"this holds no {wanted}, it is {recognise(official)}")
    network = {dit_name(name): tensor for name, tensor in state.items() if _is_of_the_network(name)}
    conditioner = _condition(state, parts)
    used = {name for name in state if _is_of_the_network(name)} | set(_sources(parts))
    if not parts:
        network["time_embed.2.bias"] = network["time_embed.2.bias"] + state[LABELS][0]
    left = sorted(state.keys() - used)
    skipped = {
        "the fixed position table, which is computed": [name for name in left if name == POSITIONS],
        "the embedding of a condition that this model was not trained with": [
            name for name in left if name != POSITIONS
        ],
    }
    return DiTState(network, conditioner, skipped)


def official_dit(
    network: Mapping[str, Tensor],
    conditioner: Mapping[str, Tensor],
    positions: Tensor,
    representation_dim: int = 256,
) -> State:
    """Invert ``dit_state``: one state dict, such as the official files hold as ``model`` and ``model_ema``.

    The official network always owns a label table and a map of representations; the one of them that this model was
    trained without is written as zeros. An unconditional model adds its only label's embedding, so that row is zero
    too: what it was before it was read from an official file stays in the bias it was added to.

    Args:
        network: state dict of a ``DiT``.
        conditioner: state dict of its ``Conditioner``, of one part at most.
        positions: the position table of the network (1, N, D).
        representation_dim: numbers of a representation, for a model that reads none.

    Raises:
        UserError: the condition has several parts, for which the official layout has no place.
    """
    state: State = {POSITIONS: positions}
    blocks = {ours: theirs for theirs, ours in BLOCK.items()}
    outside = {ours: theirs for theirs, ours in OUTSIDE.items()}
    state |= {renamed(name, "blocks.", blocks, outside): tensor for name, tensor in network.items()}
    several = [name for name in conditioner if not name.startswith("parts.0.")]
    require(not several, "an official DiT has one condition at most: this one was trained with several")
    width = positions.shape[2]
    table = conditioner.get("parts.0.table.weight")
    state[LABELS] = positions.new_zeros(1, width) if table is None else table
    empty = {"weight": positions.new_zeros(width, representation_dim), "bias": positions.new_zeros(width)}
    for kind, zeros in empty.items():
        state[f"rep_embedder.{kind}"] = conditioner.get(f"parts.0.linear.{kind}", zeros)
    if "parts.0.fake" in conditioner:
        state["fake_latent"] = conditioner["parts.0.fake"]
    return state


def dit_name(official: str) -> str:
    """Translate one parameter's name: ``blocks.3.mlp.fc1.weight`` -> ``blocks.3.mlp.0.weight``."""
    return renamed(official, "blocks.", BLOCK, OUTSIDE)


def _is_of_the_network(name: str) -> bool:
    return name.startswith("blocks.") or name.rpartition(".")[0] in OUTSIDE


def _sources(parts: tuple[Part, ...]) -> dict[str, str]:
    """Official names of what embeds the condition, to names in a ``Conditioner``."""
    require(len(parts) < 2, f"an official DiT has one condition at most, not {len(parts)}")
    if not parts or isinstance(parts[0], Classes):
        return {LABELS: "parts.0.table.weight"}
    rep = {f"rep_embedder.{kind}": f"parts.0.linear.{kind}" for kind in ("weight", "bias")}
    return {**rep, "fake_latent": "parts.0.fake"}


def _condition(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    names = _sources(parts)
    found = {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
    rows = len(state[LABELS])
    if not parts:
        require(rows == 1, f"this DiT knows {rows} labels: it is conditional on classes")
        return {}
    if isinstance(parts[0], Vector):
        width = state["rep_embedder.weight"].shape[1]
        require(width == parts[0].dim, f"this DiT reads representations of {width} numbers, not {parts[0].dim}")
        if "fake_latent" in state:
            found["parts.0.fake"] = state["fake_latent"]
        return found
    more = rows - parts[0].count
    require(more in (0, 1), f"this DiT has {rows} rows for its labels, which do not fit {parts[0].count} classes")
    return found

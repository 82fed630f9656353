"""Translation of parameter names by a key map, from official layers to ours."""

from collections.abc import Mapping

from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State
from rcg_lightning.types import require


def renamed(
    official: str, blocks: str, inside: Mapping[str, str], outside: Mapping[str, str], into: str = "blocks."
) -> str:
    """Translate a parameter's name: its layer by ``inside`` within a numbered block, by ``outside`` elsewhere.

    Args:
        official: such as ``res_blocks.3.in_layers.0.weight``.
        blocks: prefix of the official names of blocks.
        inside: official layer of a block to ours.
        outside: the same for layers outside the blocks; a layer that it does not list keeps its name.
        into: prefix of the translated names of blocks.
    """
    name, _, kind = official.rpartition(".")
    if not name.startswith(blocks):
        return f"{outside.get(name, name)}.{kind}"
    number, layer = name.removeprefix(blocks).split(".", 1)
    require(layer in inside, f"{official} is no known layer of a block")
    return f"{into}{number}.{inside[layer]}.{kind}"


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """Return the inverse of a key map."""
    return {ours: official for official, ours in names.items()}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` with ``prefix`` in front of every name."""
    return {prefix + name: tensor for name, tensor in state.items()}

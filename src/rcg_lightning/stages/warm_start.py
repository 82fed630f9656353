"""Warm start from the weights of another run: matching tensors are taken over, position tables are resized."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg_lightning.config import construct, describe
from rcg_lightning.networks.conditioner import ClassEmbedding
from rcg_lightning.networks.ema import EMA
from rcg_lightning.types import require

EMA_PREFIX = "ema."  # of the names of EMA weights, which repeat those of the trained weights
MAX_LINES = 12  # lines of one kind in a report


@dataclass
class Report:
    """Origin of each tensor of a stage after a warm start.

    Attributes:
        taken: number of tensors from the file, without EMA weights.
        changed: name -> change, for tensors from the file that were adapted.
        fresh: name -> reason, for tensors that stayed as initialised.
        unused: names of tensors of the file that the stage does not have.
    """

    taken: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Describe the report line by line, without the EMA weights."""
        output = [f"taken over: {self.taken} tensors"]
        changed, fresh = _lines("changed", self.changed), _lines("fresh", self.fresh)
        for lines in (changed, fresh, [f"not used: {name}" for name in self.unused]):
            output += lines[:MAX_LINES]
            output += [f"… and {len(lines) - MAX_LINES} more such"] if len(lines) > MAX_LINES else []
        return output


def _lines(kind: str, reasons: Mapping[str, str]) -> list[str]:
    return [f"{kind}: {name}, {reason}" for name, reason in reasons.items() if not name.startswith(EMA_PREFIX)]


def take_over(stage: nn.Module, content: Mapping[str, Any], source: str) -> Report:
    """Copy the weights of another stage of the same class into a built ``stage``, as far as they fit.

    A class embedding is taken over only where the number of classes is equal. A learned position table on a square grid
    is resized to another grid; a fixed one is computed, whatever the file has.

    Args:
        stage: the stage to train.
        content: ``stage``, ``data_spec`` and ``state_dict`` of the other stage.
        source: name of the file, for messages.

    Raises:
        UserError: the other stage has another class, or nothing fits.
    """
    mine, theirs = describe(stage)["class_path"], content["stage"]["class_path"]
    require(mine == theirs, f"{source} holds a {theirs}, not a {mine}: begin with one of the same class")
    own, given = stage.state_dict(), content["state_dict"]
    class_counts = _class_counts(stage, content)
    learned = {name.rpartition(".")[2] for name, parameter in stage.named_parameters() if parameter.requires_grad}
    weights, report = dict(own), Report()
    for name, tensor in own.items():
        fitted, reason = _fit(name, tensor, given.get(name), class_counts.get(name), learned)
        weights[name] = tensor if fitted is None else fitted
        report.taken += fitted is not None and not name.startswith(EMA_PREFIX)
        if fitted is None:
            report.fresh[name] = f"{tuple(tensor.shape)}: {reason}"
        elif reason:
            report.changed[name] = f"{tuple(tensor.shape)}: {reason}"
    report.unused = [name for name in given if name not in own and not name.startswith(EMA_PREFIX)]
    require(report.taken > 0, f"nothing in {source} fits this stage: has it another network, or another size?")
    stage.load_state_dict(weights)
    return report


def _fit(
    name: str, own: Tensor, given: Tensor | None, classes: tuple[int, int] | None, learned: set[str]
) -> tuple[Tensor | None, str]:
    """Return the tensor that replaces ``own``, None where it stays fresh, and the reason or change for the report.

    Args:
        classes: for a class embedding, the number of classes of this stage and of the file.
        learned: last parts of the names of the trained parameters.
    """
    if given is None:
        return None, "not in the file"
    if classes is not None and classes[0] != classes[1]:
        return None, f"{classes[0]} classes, the file has {classes[1]}"
    if given.shape == own.shape:
        return given, ""
    if classes is not None and given.shape[1:] == own.shape[1:]:
        null = "the null condition stays fresh" if len(own) > len(given) else "without the file's null condition"
        return torch.cat([given[: classes[0]].to(own), own[classes[0] :]]), null
    if "pos" in name and name.rpartition(".")[2] in learned:
        table = resized(given, own)
        if table is not None:
            return table, f"from {tuple(given.shape)}"
    return None, f"the file has {tuple(given.shape)}"


def resized(table: Tensor, like: Tensor) -> Tensor | None:
    """Return a position table (…, n, D) for the grid of ``like`` (…, m, D); None unless both grids are square.

    A first row outside the grid, such as a class token's, stays as it is.
    """
    sizes = table.shape[-2], like.shape[-2]
    for extra in (0, 1):  # rows in front of the grid
        sides = [round((size - extra) ** 0.5) for size in sizes]
        if all(side**2 == size - extra for side, size in zip(sides, sizes)) and table.shape[-1] == like.shape[-1]:
            rows = table.reshape(-1, *table.shape[-2:]).float()
            grid = rows[:, extra:].transpose(1, 2).unflatten(2, (sides[0], sides[0]))  # (1, D, h, h)
            grid = F.interpolate(grid, (sides[1], sides[1]), mode="bicubic", antialias=True)
            return torch.cat([rows[:, :extra], grid.flatten(2).transpose(1, 2)], dim=1).reshape(like.shape).to(like)
    return None


def _class_counts(stage: nn.Module, content: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return, by name of each class embedding's table, the number of classes of the stage and of the file."""
    counts = {}
    conditioner = content["stage"]["init_args"].get("conditioner")
    has_null = conditioner is not None and construct(conditioner).drop > 0
    for name, module in stage.named_modules():
        if isinstance(module, ClassEmbedding):
            for key in module.state_dict():
                given = content["state_dict"].get(f"{name}.{key}")
                if given is not None and given.ndim == 2:
                    counts[f"{name}.{key}"] = (module.count, len(given) - has_null)
    return counts


def start_averages(stage: nn.Module, ema: EMA, modules: Mapping[str, nn.Module], fresh: frozenset[str]) -> list[str]:
    """Start EMA weights of a stage that the file lacks from the trained weights of ``modules``; describe them."""
    prefixes, lines = {id(module): f"{name}." for name, module in stage.named_modules()}, []
    for name in ema.decays:
        copies = ema.averaged(name)
        if fresh.issuperset(prefixes[id(copies)] + key for key in copies.state_dict()):
            for part, module in modules.items():
                copies[part].load_state_dict(module.state_dict())
            lines.append(f"EMA weights {name}: not in the file, start from the trained weights")
    return lines

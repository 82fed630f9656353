"""Beginning with the weights of another run: what fits is taken over, position tables are resized."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg_lightning.config import construct, describe
from rcg_lightning.networks.conditioner import ClassEmbedding
from rcg_lightning.types import require

EMA_PREFIX = "ema."  # names of EMA weights, which repeat those of what is averaged
MOST = 12  # lines of one kind in a report


@dataclass
class Report:
    """What became of each tensor of a stage.

    Attributes:
        taken: how many come from the file, EMA weights left out.
        changed: name to how, for those that were changed on the way.
        fresh: name to why, for those that stayed as they were.
        unused: names in the file that have no place here.
    """

    taken: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Say it, line by line, but for the EMA weights."""
        output = [f"taken over: {self.taken} tensors"]
        for lines in (
            _told("changed", self.changed),
            _told("fresh", self.fresh),
            [f"not used: {n}" for n in self.unused],
        ):
            output += lines[:MOST]
            output += [f"… and {len(lines) - MOST} more such"] if len(lines) > MOST else []
        return output


def _told(what: str, names: Mapping[str, str]) -> list[str]:
    return [f"{what}: {name}, {how}" for name, how in names.items() if not name.startswith(EMA_PREFIX)]


def take_over(stage: nn.Module, content: Mapping[str, Any], where: str) -> Report:
    """Give a built ``stage`` the weights of another one of its class, as far as they fit.

    A table of classes is taken over where there are as many of them, otherwise it is left fresh. A learned table of
    positions on a square grid is resized to another grid; a fixed one is computed, whatever the file has.

    Args:
        stage: the stage that is to be trained.
        content: ``stage``, ``data_spec`` and ``state_dict`` of the other one.
        where: the file, for messages.

    Raises:
        UserError: it is of another class, or nothing fits.
    """
    mine, theirs = describe(stage)["class_path"], content["stage"]["class_path"]
    require(mine == theirs, f"{where} holds a {theirs}, not a {mine}: begin with one of the same class")
    own, given = stage.state_dict(), content["state_dict"]
    tables = _class_tables(stage, content)
    learned = {name.rpartition(".")[2] for name, parameter in stage.named_parameters() if parameter.requires_grad}
    found, report = dict(own), Report()
    for name, tensor in own.items():
        fit, how = _fitted(name, tensor, given.get(name), tables.get(name), learned)
        found[name] = tensor if fit is None else fit
        report.taken += fit is not None and not name.startswith(EMA_PREFIX)
        if fit is None:
            report.fresh[name] = f"{tuple(tensor.shape)}: {how}"
        elif how:
            report.changed[name] = f"{tuple(tensor.shape)}: {how}"
    report.unused = [name for name in given if name not in own and not name.startswith(EMA_PREFIX)]
    require(report.taken > 0, f"nothing in {where} fits this stage: is it of another network, or another size?")
    stage.load_state_dict(found)
    return report


def _fitted(
    name: str, own: Tensor, given: Tensor | None, classes: tuple[int, int] | None, learned: set[str]
) -> tuple[Tensor | None, str]:
    """Return what ``own`` becomes, None where it stays fresh, and what there is to say about it.

    Args:
        classes: for a table of classes, how many there are here and how many there were.
        learned: last parts of the names of what is trained.
    """
    if given is None:
        return None, "the file lacks it"
    if classes is not None and classes[0] != classes[1]:
        return None, f"{classes[0]} classes, the file knows {classes[1]}"
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
    """Return a table of positions (…, n, D) for the grid of ``like`` (…, m, D); None where they are no square grids.

    A row in front of the grid, such as a class token's, stays as it is.
    """
    sizes = table.shape[-2], like.shape[-2]
    for first in (0, 1):
        sides = [round((size - first) ** 0.5) for size in sizes]
        if all(side**2 == size - first for side, size in zip(sides, sizes)) and table.shape[-1] == like.shape[-1]:
            rows = table.reshape(-1, *table.shape[-2:]).float()
            grid = rows[:, first:].transpose(1, 2).unflatten(2, (sides[0], sides[0]))  # (1, D, h, h)
            grid = F.interpolate(grid, (sides[1], sides[1]), mode="bicubic", antialias=True)
            return torch.cat([rows[:, :first], grid.flatten(2).transpose(1, 2)], dim=1).reshape(like.shape).to(like)
    return None


def _class_tables(stage: nn.Module, content: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return, for the name of each table of classes, how many classes there are here and how many there were."""
    found = {}
    described = content["stage"]["init_args"].get("conditioner")
    null = described is not None and construct(described).drop > 0
    for name, module in stage.named_modules():
        if isinstance(module, ClassEmbedding):
            for key in module.state_dict():
                given = content["state_dict"].get(f"{name}.{key}")
                if given is not None and given.ndim == 2:
                    found[f"{name}.{key}"] = (module.count, len(given) - null)
    return found

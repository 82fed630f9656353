"""Report on every tensor of an official file: mapped, changed (how), ignored (why) or unknown."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

TRAINING = {
    r"(optimizer|scaler|lr_scheduler|optimizer_states|lr_schedulers|callbacks|state)\b": "state of its training",
    r"(epoch|iteration|global_step|best_acc1|arch|args|fp16_scaler|dino_loss|ibot_loss)\b": "settings of its training",
}


@dataclass(frozen=True)
class TensorReport:
    """Names of a file's tensors, by their use.

    Attributes:
        mapped: tensors that the native model uses unchanged.
        changed: tensors that are converted, by the kind of change.
        ignored: tensors that nothing here reads, by reason.
        unknown: all others.
    """

    mapped: list[str]
    changed: dict[str, list[str]]
    ignored: dict[str, list[str]]
    unknown: list[str]

    def lines(self) -> list[str]:
        """Return a line for each group of names."""
        output = [f"mapped      {_groups(self.mapped, 24)}"] if self.mapped else []
        output += [f"changed     {_groups(names, 3)}: {how}" for how, names in self.changed.items()]
        output += [f"ignored     {_groups(names, 3)}: {why}" for why, names in self.ignored.items()]
        if self.unknown:
            output.append(
                f"unknown     {len(self.unknown)} ({', '.join(self.unknown[:3])}, …): nothing here reads them"
            )
        return output


def report_tensors(
    content: Mapping[str, Any], used: Iterable[Tensor], ignored: Mapping[str, str], changed: Mapping[str, str]
) -> TensorReport:
    """Compare the tensors of a file with those that were used.

    Args:
        content: of the file.
        used: tensors that were used; the file's own or views of them.
        ignored: pattern of names, to the reason why nothing reads them.
        changed: pattern of names, to the change of their tensors.
    """
    taken = {tensor.untyped_storage()._cdata for tensor in used}
    found = TensorReport([], {}, {}, [])
    for name, tensor in tensors(content):
        how = next((how for pattern, how in changed.items() if re.search(pattern, name)), None)
        why = next((why for pattern, why in {**ignored, **TRAINING}.items() if re.match(pattern, name)), None)
        if tensor.untyped_storage()._cdata in taken:
            found.mapped.append(name)
        elif how is not None:
            found.changed.setdefault(how, []).append(name)
        elif why is not None:
            found.ignored.setdefault(why, []).append(name)
        else:
            found.unknown.append(name)
    return found


def tensors(content: Any, prefix: str = "") -> Iterable[tuple[str, Tensor]]:
    """Yield every tensor in nested dictionaries and lists, under its names joined by dots."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from tensors(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from tensors(value, f"{prefix}.{number}")


def _groups(names: Iterable[str], most: int) -> str:
    """Count names by as many of their first layers as leave ``most`` groups."""
    names = list(names)
    groups: Counter[str] = Counter(names)
    for depth in (4, 3, 2, 1):
        if len(groups) <= most:
            break
        groups = Counter(_start(name, depth) for name in names)
    return ", ".join(f"{group} ({count})" if count > 1 else group for group, count in groups.items())


def _start(name: str, depth: int) -> str:
    layers = [layer for layer in name.split(".") if not layer.isdigit()]
    return ".".join(layers[:depth]) + (".*" if len(layers) > depth else "")

"""Metrics and how they were made: stored as JSON, shown, and compared with earlier ones."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcg_lightning.artifacts import write_json
from rcg_lightning.cli.parsing import echo
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.records import comparable
from rcg_lightning.types import require


def content_of(named: Sequence[Mapping[str, float]], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored: ``metrics`` (means over blocks of seeds), ``deviations``, ``blocks``, ``protocol``.

    Args:
        named: the metrics of each block, by full names.
        record: how they were made.
    """
    means = {name: statistics.fmean(block[name] for block in named) for name in named[0]}
    content: dict[str, Any] = {"metrics": means if len(named) > 1 else dict(named[0])}
    if len(named) > 1:
        content["deviations"] = {name: statistics.stdev(block[name] for block in named) for name in means}
        content["blocks"] = [dict(block) for block in named]
    return content | {"protocol": dict(record)}


def read_content(path: Path) -> dict[str, Any]:
    """Return the metrics that a command stored, or raise UserError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a file of metrics: {error}") from error
    require(isinstance(found, dict), f"{path} holds no metrics: give what `rcg evaluate --out` wrote")
    return found


def report(
    content: dict[str, Any], out: Path | None = None, as_json: bool = False, earlier: Mapping[str, Any] | None = None
) -> None:
    """Print metrics, or all of ``content`` as JSON, and write it to ``out``.

    Args:
        content: what ``content_of`` returned, and more.
        out: JSON file.
        as_json: print the same JSON and nothing else.
        earlier: such content of other samples: differences are added, with a warning where protocols differ.
    """
    if earlier is not None:
        same = comparable(content["protocol"], earlier.get("protocol"))
        before = earlier.get("metrics", earlier)
        common = [name for name in content["metrics"] if name in before]
        changes = {name: content["metrics"][name] - before[name] for name in common}
        content["against"] = {"comparable": same, "differences": changes}
    if out is not None:
        write_json(out, content)
    if as_json:
        echo(json.dumps(content, indent=1))
    else:
        _show(content)


def _show(content: Mapping[str, Any]) -> None:
    deviations = content.get("deviations", {})
    changes = content.get("against", {}).get("differences", {})
    for name, value in content["metrics"].items():
        deviation = f" ± {deviations[name]:.4f}" if name in deviations else ""
        change = f"  ({changes[name]:+.4f})" if name in changes else ""
        echo(f"{name:<40} {value:.4f}{deviation}{change}")
    if "closest" in content:
        found = content["closest"]
        nearest = ", ".join(f"{row['distance']:.4f}" for row in found["rows"][:3])
        echo(f"closest of {found['of']} samples to training images, in {found['in']}: {nearest}, … {found['image']}")
    protocol = content["protocol"]
    real = protocol["reference"]
    against = f"{real.get('file') or real['set']} {str(real.get('identity') or '')[:8]}".strip()
    echo(f"protocol {protocol['name']}: {protocol['weights']}, {protocol['number']} samples, reference {against}")

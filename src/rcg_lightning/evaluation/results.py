"""Results: metrics with their protocol, stored as JSON, shown as text, and compared with earlier results."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.records import comparable
from rcg_lightning.types import require


def content_of(named: Sequence[Mapping[str, float]], record: Mapping[str, Any]) -> dict[str, Any]:
    """Assemble results to store: ``metrics`` (means over blocks of seeds), ``deviations``, ``blocks``, ``protocol``.

    Args:
        named: the metrics of each block, by full name.
        record: of their protocol.
    """
    means = {name: statistics.fmean(block[name] for block in named) for name in named[0]}
    content: dict[str, Any] = {"metrics": means if len(named) > 1 else dict(named[0])}
    if len(named) > 1:
        content["deviations"] = {name: statistics.stdev(block[name] for block in named) for name in means}
        content["blocks"] = [dict(block) for block in named]
    return content | {"protocol": dict(record)}


def read_content(path: Path) -> dict[str, Any]:
    """Read the results that a command stored, or raise UserError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a file of metrics: {error}") from error
    require(isinstance(found, dict), f"{path} holds no metrics: give a file that `rcg evaluate --out` wrote")
    return found


def add_differences(content: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Add the differences from earlier results of other samples; a warning reports different protocols."""
    same = comparable(content["protocol"], earlier.get("protocol"))
    before = earlier.get("metrics", earlier)
    common = [name for name in content["metrics"] if name in before]
    changes = {name: content["metrics"][name] - before[name] for name in common}
    content["against"] = {"comparable": same, "differences": changes}


def results_text(content: Mapping[str, Any]) -> str:
    """Return results as text: one line per metric, then the protocol."""
    deviations = content.get("deviations", {})
    changes = content.get("against", {}).get("differences", {})
    lines = []
    for name, value in content["metrics"].items():
        deviation = f" ± {deviations[name]:.4f}" if name in deviations else ""
        change = f"  ({changes[name]:+.4f})" if name in changes else ""
        lines.append(f"{name:<40} {value:.4f}{deviation}{change}")
    if "closest" in content:
        found = content["closest"]
        nearest = ", ".join(f"{row['distance']:.4f}" for row in found["rows"][:3])
        closest = f"closest of {found['of']} samples to training images, in {found['in']}"
        lines.append(f"{closest}: {nearest}, … {found['image']}")
    protocol = content["protocol"]
    real = protocol["reference"]
    against = f"{real.get('file') or real['set']} {str(real.get('identity') or '')[:8]}".strip()
    made = f"{protocol['weights']}, {protocol['number']} samples, reference {against}"
    return "\n".join([*lines, f"protocol {protocol['name']}: {made}"])

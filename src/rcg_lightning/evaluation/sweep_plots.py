"""Results of a sweep over sampling settings: table, plots and the best setting."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from PIL import Image

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.image_grid import save_png
from rcg_lightning.evaluation.report import mean_and_deviation
from rcg_lightning.types import require

Value = float | int | str

HIGHER_IS_BETTER = frozenset({"is", "precision", "recall", "density", "coverage", "log_likelihood"})
# metric -> (title, digits), in the order of the table; other metrics follow under their own names
TITLES = {
    "fd": ("FD", 3),
    "fd_eval": ("FD to evaluation", 3),
    "sfd": ("sFD", 3),
    "sfd_eval": ("sFD to evaluation", 3),
    "kd": ("KD", 5),
    "is": ("IS", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
    "copy_rate": ("copy rate", 3),
}
_TOGETHER = (
    ("fd", "fd_eval"),
    ("sfd", "sfd_eval"),
    ("precision", "recall"),
    ("density", "coverage"),
)  # metrics that share a panel
_NOT_PLOTTED = frozenset({"nearest"})
_TRADING = ("guidance", "temperature", "prior_temperature")  # settings that trade diversity for quality
_LINES = 8  # in one plot; more cannot be distinguished


@dataclass(frozen=True)
class Point:
    """One setting and its metrics.

    Attributes:
        setting: name of each swept setting -> its value.
        metrics: of each seed, by short name.
        n: samples of each seed.
    """

    setting: dict[str, Value]
    metrics: tuple[dict[str, float], ...]
    n: int

    def values(self, metric: str) -> list[float]:
        """Return a metric's value for each seed that has it."""
        return [metrics[metric] for metrics in self.metrics if metric in metrics]

    def mean(self, metric: str) -> float:
        """Return the mean over seeds, NaN where the metric was not measured."""
        found = self.values(metric)
        return statistics.fmean(found) if found else math.nan

    def deviation(self, metric: str) -> float:
        """Return the standard deviation over seeds, 0 for one seed."""
        found = self.values(metric)
        return statistics.stdev(found) if len(found) > 1 else 0.0

    @property
    def description(self) -> str:
        """The setting in words: ``guidance 2, steps 25``."""
        return ", ".join(f"{name.replace('_', ' ')} {written(value)}" for name, value in self.setting.items())


def written(value: Value) -> str:
    """Format a setting's value as a user would type it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def metrics_of(points: Sequence[Point]) -> list[str]:
    """Return the metrics of the points, those of TITLES first; deviations over splits are omitted."""
    found = dict.fromkeys(name for point in points for metrics in point.metrics for name in metrics)
    names = [name for name in found if not name.endswith("_std")]
    return [name for name in TITLES if name in names] + [name for name in names if name not in TITLES]


def best(points: Sequence[Point], metric: str) -> Point:
    """Return the point with the best mean of a metric: the highest or the lowest, by metric.

    Raises:
        UserError: the metric was not measured.
    """
    rated = [point for point in points if not math.isnan(point.mean(metric))]
    if not rated:
        raise UserError(f"{metric!r} was not measured: choose one of {', '.join(metrics_of(points))}")
    return (max if metric in HIGHER_IS_BETTER else min)(rated, key=lambda point: point.mean(metric))


def sweep_table(points: Sequence[Point], by: str) -> str:
    """Return a Markdown table with one row per setting; the best by metric ``by`` is bold."""
    require(bool(points), "a sweep without settings has no table")
    metrics, winner = metrics_of(points), best(points, by)
    axes = list(points[0].setting)
    titles = [*(name.replace("_", " ") for name in axes), *(_title(name) for name in metrics)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for point in points:
        cells = [written(point.setting[name]) for name in axes]
        for metric in metrics:
            digits = TITLES.get(metric, ("", 4))[1]
            cells.append(mean_and_deviation(point.values(metric), lambda value, digits=digits: f"{value:.{digits}f}"))
        cells = [f"**{cell}**" for cell in cells] if point is winner else cells
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plots(points: Sequence[Point], note: str = "") -> dict[str, Figure]:
    """Return every plot of a sweep by file name.

    Each setting with more than one value gets a plot of the metrics against it. Settings that trade diversity for
    quality, such as guidance, also get FD against IS and precision against recall. Each combination of the other
    settings is a line.

    Args:
        note: text below each plot: extractor, number of samples, reference.
    """
    figures: dict[str, Figure] = {}
    for axis in points[0].setting if points else ():
        lines = _lines(points, axis)
        if not lines:
            continue
        figures[axis] = _against(lines, axis, note)
        if axis not in _TRADING:
            continue
        for name, across, up in (("fd_is", "is", "fd"), ("precision_recall", "recall", "precision")):
            if {across, up} <= set(metrics_of(points)):
                figures[f"{axis}_{name}"] = _trade(lines, axis, across, up, note)
    return figures


def image(figure: Figure) -> np.ndarray:
    """Return a plot as pixels, (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_plots(images: dict[str, np.ndarray], folder: Path) -> list[Path]:
    """Write plots (file name -> pixels) as PNG files and return their paths."""
    paths = [folder / f"{name}.png" for name in images]
    for path, pixels in zip(paths, images.values()):
        save_png(Image.fromarray(pixels), path)
    return paths


def _lines(points: Sequence[Point], axis: str) -> dict[str, list[Point]]:
    """Return a line for each combination of the other settings: its points along ``axis``; longest lines only."""
    varying = [name for name in points[0].setting if len({point.setting[name] for point in points}) > 1]
    if axis not in varying:
        return {}
    lines: dict[str, list[Point]] = {}
    for point in points:
        rest = {name: point.setting[name] for name in varying if name != axis}
        lines.setdefault(Point(rest, (), 0).description, []).append(point)
    longest = max(len(line) for line in lines.values())
    chosen = {label: line for label, line in lines.items() if len(line) == longest}
    if len(chosen) > _LINES:  # those with the lowest FD, or the first ones where there is no FD
        ranked = sorted(chosen, key=lambda label: min((point.mean("fd") for point in chosen[label]), default=0))
        chosen = {label: line for label, line in chosen.items() if label in ranked[:_LINES]}
    return {label: _in_order(line, axis) for label, line in chosen.items()}


def _in_order(line: list[Point], axis: str) -> list[Point]:
    """Sort points by a numeric setting; leave names in the given order."""
    if any(isinstance(point.setting[axis], str) for point in line):
        return line
    return sorted(line, key=lambda point: point.setting[axis])


def _against(lines: dict[str, list[Point]], axis: str, note: str) -> Figure:
    """Plot metrics against one setting, one panel per metric; for a single line, related metrics share a panel."""
    present = [name for name in metrics_of([p for line in lines.values() for p in line]) if name not in _NOT_PLOTTED]
    together = _TOGETHER if len(lines) == 1 else ()
    groups = {name: [name] for name in present}
    for first, second in together:
        if first in groups and second in groups:
            groups[first] += groups.pop(second)
    columns = 2 if len(groups) == 4 else min(len(groups), 3)
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.2 * columns + _legend_width(lines), 3.3 * rows + 0.5), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, group in zip(panels, groups.values()):
        _panel(panel, lines, axis, group)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    _finish(figure, f"metrics against {axis.replace('_', ' ')}", note, lines)
    return figure


def _panel(panel: Axes, lines: dict[str, list[Point]], axis: str, group: list[str]) -> None:
    names = [written(point.setting[axis]) for point in next(iter(lines.values()))]
    by_name = any(isinstance(point.setting[axis], str) for line in lines.values() for point in line)
    for colour, line in zip(_colours(len(lines)), lines.values()):
        at: list[Any] = list(range(len(line))) if by_name else [point.setting[axis] for point in line]
        for number, metric in enumerate(group):
            shade, stroke = (colour, "-") if number == 0 else (f"C{number}", "--")
            means, spreads = [p.mean(metric) for p in line], [p.deviation(metric) for p in line]
            style: dict[str, Any] = {"color": shade, "linestyle": stroke, "marker": "o", "markersize": 4, "capsize": 3}
            panel.errorbar(at, means, yerr=spreads if any(spreads) else None, label=_title(metric), **style)
    if by_name:
        panel.set_xticks(range(len(names)), names)
        panel.margins(x=0.1)
    if len(group) > 1:
        panel.legend(fontsize=8, frameon=False)
    _label(panel, axis.replace("_", " "), " / ".join(_title(metric) for metric in group) + _direction(group[0]))


def _trade(lines: dict[str, list[Point]], axis: str, across: str, up: str, note: str) -> Figure:
    """Plot one metric against another along one setting, whose values label the points."""
    figure = Figure(figsize=(5.6 + _legend_width(lines), 4.6), dpi=110, layout="constrained")
    panel = figure.subplots()
    halo = [Stroke(linewidth=2.5, foreground="white"), Normal()]
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "path_effects": halo, "zorder": 5}
    for colour, line in zip(_colours(len(lines)), lines.values()):
        means = [(point.mean(across), point.mean(up)) for point in line]
        panel.plot(*zip(*means), color=colour)
        panel.scatter(*zip(*means), color=colour, s=25, zorder=6)  # above the text's white halo
        # where there are many lines, label only their ends
        for point, at in zip(line, means) if len(lines) <= 2 else ((line[0], means[0]), (line[-1], means[-1])):
            text, offset = written(point.setting[axis]), (6, 5)
            panel.annotate(text, at, offset, color=colour, **style)
    panel.margins(0.12)
    _label(panel, _title(across) + _direction(across), _title(up) + _direction(up))
    _finish(figure, f"{_title(up)} against {_title(across)}, by {axis.replace('_', ' ')}", note, lines)
    return figure


def _label(panel: Axes, across: str, up: str) -> None:
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _legend_width(lines: dict[str, list[Point]]) -> float:
    """Width in inches of the legend next to the panels."""
    return 0.0 if len(lines) == 1 else 0.6 + 0.075 * max(map(len, lines))


def _finish(figure: Figure, title: str, note: str, lines: dict[str, list[Point]]) -> None:
    figure.suptitle(title, fontsize=11)
    if note:
        figure.supxlabel(textwrap.fill(note, int(16 * figure.get_figwidth())), fontsize=7, color="0.4")
    if len(lines) > 1:
        handles = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in _colours(len(lines))]
        figure.legend(handles, list(lines), loc="outside right upper", fontsize=8, frameon=False)


def _colours(count: int) -> list[Any]:
    """Return ``count`` colours, from dark to light."""
    return ["C0"] if count == 1 else [colormaps["viridis"](0.85 * i / (count - 1)) for i in range(count)]


def _title(metric: str) -> str:
    return TITLES.get(metric, (metric.replace("_", " "), 4))[0]


def _direction(metric: str) -> str:
    return " (higher is better)" if metric in HIGHER_IS_BETTER else " (lower is better)"

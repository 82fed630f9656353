"""Curves of a training run, from the scalars that it has logged for TensorBoard. Nothing here imports torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

Curve = list[tuple[int, float]]  # step and value
_POINTS, _PANELS, _COLUMNS = 1000, 9, 3
_LEFT_OUT = ("epoch",)


def logged_scalars(folder: Path) -> dict[str, Curve]:
    """Return the scalars in the event files of a folder by tag, at most 1000 points of each."""
    events = EventAccumulator(str(folder), {SCALARS: _POINTS, IMAGES: 1})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in _LEFT_OUT]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def panels_of(scalars: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Group curves by the last part of their tags: train/loss and val/loss share a panel; losses come first."""
    panels: dict[str, dict[str, Curve]] = {}
    for tag, curve in scalars.items():
        panels.setdefault(tag.rpartition("/")[2], {})[tag] = curve
    names = sorted(panels, key=lambda name: (name != "loss", "loss" not in name, name))
    return {name: panels[name] for name in names[:_PANELS]}


def curves_image(scalars: Mapping[str, Curve]) -> Image.Image:
    """Draw the curves, a panel for each metric."""
    panels = panels_of(scalars)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (name, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for tag, curve in sorted(curves.items()):
            steps, values = zip(*curve)
            axes.plot(steps, values, marker="." if len(curve) < 20 else None, label=tag)
        _scale(axes, list(curves.values()))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _scale(axes: object, curves: Sequence[Curve]) -> None:
    """Use a logarithmic axis where positive values span more than two decades."""
    values = [value for curve in curves for _, value in curve if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")  # type: ignore[attr-defined]

"""The table of a comparison: one row a condition and seed, as JSON, Markdown and an image."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.artifacts import write_json, write_text
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.image_grid import labelled_grid, save_png
from rcg_lightning.evaluation.reference import Reference, real_images
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.types import require

REAL = "real"  # the condition of rows that no model made: reference values, told apart by their part
EVALUATION, RESAMPLED = "evaluation", "training_set_resampled"
SHOWN = 18  # samples of a row in the image


@dataclass(frozen=True, eq=False)
class Row:
    """One set of samples and its metrics.

    Attributes:
        condition: none, cluster, class, representation, …, or real.
        seed: of the samples.
        metrics: name to value, as ``score`` gives them.
        n: number of samples.
        seconds: time to make them, or to read them where they are real.
        samples: some of them, uint8 (m, C, H, W), for the image.
        part: which real images, EVALUATION or RESAMPLED; None for samples.
    """

    condition: str
    seed: int
    metrics: dict[str, float]
    n: int
    seconds: float
    samples: Tensor | None = field(default=None, repr=False)
    part: str | None = None

    @property
    def title(self) -> str:
        """What stands in tables and images."""
        return " ".join(word for word in (self.condition, self.part) if word).replace("_", " ")

    def plain(self) -> dict[str, Any]:
        """Return what stands in results.json."""
        metrics = {"condition": self.condition, "seed": self.seed, "metrics": self.metrics}
        metrics |= {} if self.part is None else {"part": self.part}
        return metrics | {"n": self.n, "seconds": round(self.seconds, 3)}


def reference_rows(
    data: ImageDataModule,
    reference: Reference,
    extractor: FeatureExtractor,
    n: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Return what real images score, the reference values: the best any generator can hope for.

    The first row is of ``n`` training images chosen with replacement (its copy rate is 1 by construction), the second
    of evaluation images, ``n`` of them or all there are.
    """
    # which real images a seed compares: a local generator gives the same ones whatever else has been random
    draw = np.random.default_rng(seed)
    held, train = len(data.images("eval")), len(data.images("train"))
    evaluation = draw.permutation(held)[:n]
    chosen = {RESAMPLED: ("train", draw.integers(0, train, n)), EVALUATION: ("eval", evaluation)}
    rows = []
    for part, (split, index) in chosen.items():
        if len(index) < 2:
            continue
        start = monotonic()
        metrics = score(real_images(data, split, index), reference, extractor, device)
        shown = torch.cat(list(real_images(data, split, index[:SHOWN])))
        rows.append(Row(REAL, seed, metrics, len(index), monotonic() - start, shown, part))
    return rows


def write_results(folder: Path, rows: Sequence[Row], note: str = "") -> None:
    """Write results.json, results.md and, where rows bring samples, grid.png.

    Args:
        rows: in the order of the table; rows of one condition are the seeds of one line.
        note: stands above the table: extractor, reference, what else a metric depends on.
    """
    require(bool(rows), "there are no results to write")
    write_json(folder / "results.json", [row.plain() for row in rows])
    write_text(folder / "results.md", f"{note}\n\n{table(rows)}".lstrip())
    drawn: dict[str, Row] = {}
    for row in rows:
        if row.samples is not None:
            drawn.setdefault(row.title, row)
    if drawn:
        strips = [(row.title, row.samples[:SHOWN]) for row in drawn.values() if row.samples is not None]
        save_png(labelled_grid(strips, SHOWN), folder / "grid.png")


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table, mean ± standard deviation over several seeds; reference values come last."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.title, []).append(row)
    lines = [
        "| condition | n | seeds | FD to train | FD to evaluation | IS | precision / recall | copy rate | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, group in sorted(groups.items(), key=lambda item: item[1][0].condition == REAL):  # stable
        name = f"*reference value: {title}*" if group[0].condition == REAL else title
        sizes = "/".join(str(n) for n in dict.fromkeys(row.n for row in group))
        pair = f"{_over_seeds(group, 'precision', 2)} / {_over_seeds(group, 'recall', 2)}"
        cells = [name, sizes, str(len(group)), _over_seeds(group, "fd", 3), _over_seeds(group, "fd_eval", 3)]
        cells += [_over_seeds(group, "is", 2), pair, _over_seeds(group, "copy_rate", 3)]
        cells.append(mean_and_deviation([row.seconds for row in group], lambda value: f"{value:.1f}"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _over_seeds(group: list[Row], metric: str, digits: int) -> str:
    values = [row.metrics[metric] for row in group if metric in row.metrics]
    return mean_and_deviation(values, lambda value: f"{value:.{digits}f}")


def mean_and_deviation(values: list[float], written: Callable[[float], str]) -> str:
    """Return values over seeds as text, "mean ± standard deviation"; a dash where there are none."""
    if not values:
        return "–"
    mean = written(statistics.fmean(values))
    return f"{mean} ± {written(statistics.stdev(values))}" if len(values) > 1 else mean

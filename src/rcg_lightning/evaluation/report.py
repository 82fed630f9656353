"""The table of a comparison as JSON, Markdown and an image: one row per condition and seed."""

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

REAL = "real"  # the condition of rows of real images (reference values); ``part`` distinguishes them
EVALUATION, RESAMPLED = "evaluation", "training_set_resampled"
SHOWN = 18  # samples per row of the image


@dataclass(frozen=True, eq=False)
class Row:
    """One set of samples and its metrics.

    Attributes:
        condition: none, cluster, class, representation, …, or real.
        seed: of the samples.
        metrics: name to value, from ``score``.
        n: number of samples.
        seconds: time to generate the samples, or to read real ones.
        samples: the first m, uint8 (m, C, H, W), for the image.
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
        """Title in tables and images."""
        return " ".join(word for word in (self.condition, self.part) if word).replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of results.json."""
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
    """Score real images: the reference values, the best that any generator can reach.

    The first row scores ``n`` training images chosen with replacement (its copy rate is 1 by construction), the second
    ``n`` evaluation images, or all where there are fewer.
    """
    # a local generator: a seed always chooses the same real images
    rng = np.random.default_rng(seed)
    evaluation_count, train_count = len(data.images("eval")), len(data.images("train"))
    evaluation = rng.permutation(evaluation_count)[:n]
    chosen = {RESAMPLED: ("train", rng.integers(0, train_count, n)), EVALUATION: ("eval", evaluation)}
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
    """Write results.json, results.md and, where rows have samples, grid.png.

    Args:
        rows: in the order of the table; rows of one condition (its seeds) share a line.
        note: text above the table: extractor, reference, and what else the metrics depend on.
    """
    require(bool(rows), "there are no results to write")
    write_json(folder / "results.json", [row.to_dict() for row in rows])
    write_text(folder / "results.md", f"{note}\n\n{table(rows)}".lstrip())
    shown: dict[str, Row] = {}
    for row in rows:
        if row.samples is not None:
            shown.setdefault(row.title, row)
    if shown:
        strips = [(row.title, row.samples[:SHOWN]) for row in shown.values() if row.samples is not None]
        save_png(labelled_grid(strips, SHOWN), folder / "grid.png")


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table with mean ± standard deviation over seeds; reference values come last."""
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
        pair = " / ".join(_over_seeds(group, part, "{:.2f}".format) for part in ("precision", "recall"))
        cells = [name, sizes, str(len(group)), *(_over_seeds(group, fd, distance_text) for fd in ("fd", "fd_eval"))]
        cells += [_over_seeds(group, "is", "{:.2f}".format), pair, _over_seeds(group, "copy_rate", "{:.3f}".format)]
        cells.append(mean_and_deviation([row.seconds for row in group], "{:.1f}".format))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _over_seeds(group: list[Row], metric: str, written: Callable[[float], str]) -> str:
    return mean_and_deviation([row.metrics[metric] for row in group if metric in row.metrics], written)


def distance_text(value: float) -> str:
    """Return a Fréchet distance with three decimals, or with two digits where these would be zeros.

    The scale depends on the extractor: normalised features lie within hundredths of each other. Rounding errors, of
    images compared with themselves, are 0.
    """
    return f"{value:#.2g}" if 1e-9 < abs(value) < 0.1 else f"{value:.3f}"


def mean_and_deviation(values: list[float], written: Callable[[float], str]) -> str:
    """Format values over seeds as "mean ± standard deviation"; a dash where there are none."""
    if not values:
        return "–"
    mean = written(statistics.fmean(values))
    return f"{mean} ± {written(statistics.stdev(values))}" if len(values) > 1 else mean

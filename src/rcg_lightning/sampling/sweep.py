"""Sweep: score a generator at many sampling settings, reuse earlier scores, and write the report."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rcg_lightning.artifacts import fingerprint, read_state, set_aside, write_json, write_text
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import Scorer
from rcg_lightning.evaluation.sweep_plots import Point, best, image, plots, save_plots, sweep_table
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.sampling.scoring import SamplingProgress, score_generated
from rcg_lightning.sampling.sweep_sampling import SweepSampling
from rcg_lightning.sampling.sweep_settings import Setting

SCORED = "scored.json"  # every setting scored in a folder, by a hash of all inputs of its metrics


class ScoreCache:
    """The metrics of every setting scored so far, in a file that is rewritten after each; damaged scores are redone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_state(path, lambda found: all(_is_score(record) for record in found.values()))
        if path.is_file() and not self.records:  # someone may still read what the next score would overwrite
            set_aside(path, f"{path.name}.damaged")

    def add(self, key: str, record: dict[str, Any], write: bool = True) -> None:
        """Store one record; of several processes, only one should write."""
        self.records[key] = record
        if write:
            write_json(self.path, self.records)


def _is_score(record: Any) -> bool:
    metrics = record.get("metrics") if isinstance(record, dict) else None
    return isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())


@dataclass(frozen=True)
class ScoringSetup:
    """How every setting is scored.

    Attributes:
        protocol: by which it is scored.
        extractor: makes the features to compare.
        real: real images in these features.
        spec: their description for the record.
        metrics: groups of metrics, of ``scorer.EVERY``.
    """

    protocol: Protocol
    extractor: FeatureExtractor
    real: Reference
    spec: dict[str, Any]
    metrics: frozenset[str]

    def scorer(self) -> Scorer:
        """Return a new scorer."""
        return Scorer(self.extractor, self.real, self.metrics, self.protocol.neighbours)

    def depends_on(self) -> dict[str, Any]:
        """Return, as plain data, all inputs of the metrics other than the samples."""
        return {
            "extractor": self.extractor.identity,
            "reference": [self.real.identity, self.real.name, self.spec["identity"]],
            "groups": sorted(self.metrics),
            "neighbours": self.protocol.neighbours,
            "quantisation": self.protocol.quantisation,
        }


def score_settings(
    sampling: SweepSampling,
    settings: Sequence[Setting],
    setup: ScoringSetup,
    by: str,
    cache: ScoreCache,
    report: Callable[[str], None],
) -> tuple[list[Point], bool]:
    """Score every setting that has no score yet.

    Args:
        by: metric that ranks the settings.
        report: shows a line for each setting and seed, in one of several processes.

    Returns:
        All points, in the order of ``settings``, and whether this is the process that reports.
    """
    asked = sampling.asked
    progress = SamplingProgress()
    trainer = asked.trainer(sampling.out, enable_progress_bar=False, callbacks=[progress])
    points: list[Point] = []
    for number, setting in enumerate(settings, 1):
        progress.title = title = f"[{number}/{len(settings)}] {Point(setting, (), asked.number).description}"
        found: list[dict[str, float]] = []
        for seed in range(asked.seeds):
            inputs = {**sampling.depends_on(setting, seed), **setup.depends_on()}
            key = fingerprint(inputs)
            fresh = key not in cache.records
            if fresh:
                start = time.perf_counter()
                seeds = sampling.seeds(setting, seed)
                result = score_generated(sampling.module(setting, setup.scorer(), setup.protocol), seeds, trainer)
                elapsed = {"seconds": round(time.perf_counter() - start, 2)}
                scored = {"setting": setting, "n": asked.number, "metrics": result.blocks[0]}
                cache.add(key, {**scored, **elapsed, **inputs}, trainer.is_global_zero)
            found.append(cache.records[key]["metrics"])
            best([Point(setting, (found[-1],), asked.number)], by)  # rejects an unknown metric at once
            if trainer.is_global_zero:
                which = f", seed {seed}" if asked.seeds > 1 else ""
                end = f"{cache.records[key]['seconds']:.1f} s" if fresh else "scored before"
                report(f"{title}{which}: {by} {found[-1][by]:.4f}   ({end})")
        points.append(Point(setting, tuple(found), asked.number))
    return points, trainer.is_global_zero


def write_sweep(points: Sequence[Point], by: str, setup: ScoringSetup, record: dict[str, Any], out: Path) -> str:
    """Write table, metrics and plots; return a text with the table, the best setting and the paths."""
    winner, table = best(points, by), sweep_table(points, by)
    seeds, n = len(winner.metrics), winner.n
    size = f"{n} samples" + (f" × {seeds} seeds" if seeds > 1 else "")
    source = record["reference"]
    against = f"{source.get('file') or source['set']} {str(source['identity'])[:8]}"
    note = f"{size}, features of {record['weights']}, reference {against}, protocol {record['name']}"
    names = {kind: name for kind in winner.metrics[0] for name in setup.scorer().full_names({kind: 0.0}, n)}
    rows = [{"setting": p.setting, "n": p.n, "metrics": list(p.metrics)} for p in points]
    content = {"note": note, "by": by, "best": winner.setting, "names": names, "protocol": record, "rows": rows}
    write_json(out / "sweep.json", content)
    write_text(out / "sweep.md", f"{note}\n\n{table}")
    images = {name: image(figure) for name, figure in plots(points, note).items()}
    paths = save_plots(images, out)
    with SummaryWriter(str(out)) as events:
        events.add_text("sweep", f"{note}\n\n{table}")
        for name, pixels in images.items():
            events.add_image(f"sweep/{name}", pixels, dataformats="HWC")
    named = ", ".join(path.name for path in paths) or "none, since no setting varies"
    lines = [f"\n{table}", f"best by {by}: {winner.description} ({by} {winner.mean(by):.4f})"]
    return "\n".join([*lines, f"table: {out / 'sweep.md'}   plots: {named}"])

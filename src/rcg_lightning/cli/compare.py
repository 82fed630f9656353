"""`rcg compare`: several sets of samples against the same real images, in one table."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.comparison import Comparison, read_entries
from rcg_lightning.evaluation.report import distance_text
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.trainer import pick_device


def compare(
    rows: Path, data: ImageDataModule, extractor: FeatureExtractor, out: Path, accelerator: str = "auto"
) -> None:
    """Score sets of samples by one protocol and write results.json, results.md and grid.png.

    Every row must have the same number of samples, since every metric depends on it. The last rows score real images as
    reference values: evaluation images, and training images chosen again at random.

    Args:
        rows: JSON list of {"condition", "seed", "samples", "seconds"}; samples as for `rcg evaluate`.
        data: the real images.
        extractor: makes the features to compare.
        out: folder to write; it also stores the features of the real images.
        accelerator: cpu, gpu, mps or auto.
    """
    entries = read_entries(rows)
    comparison = Comparison(data, extractor, out / "reference", pick_device(accelerator))
    for entry in entries:
        row = comparison.add(entry)
        echo(f"  {row.condition}, seed {row.seed}: FD {distance_text(row.metrics['fd'])}")
    comparison.write(out)


def main(name: str, argv: list[str]) -> None:
    call(compare, name, argv, ["rcg compare --rows rows.json --data.source Digits --extractor … --out runs/table"])

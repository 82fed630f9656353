"""Several sets of samples against the same real images: one table, one protocol."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rcg_lightning.artifacts import write_json
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.records import one_format
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.report import SHOWN, Row, reference_rows, write_results
from rcg_lightning.evaluation.sample_readers import open_samples, samples_folder
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.types import require


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of {"condition", "seed", "samples", "seconds"}, or raise UserError."""
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a JSON list of rows: {error}") from error
    wanted = {"condition", "seed", "samples"}
    entries = listed if isinstance(listed, list) else []
    complete = [isinstance(entry, dict) and wanted <= entry.keys() for entry in entries]
    if not entries or not all(complete) or not all(isinstance(entry["samples"], str) for entry in entries):
        raise UserError(f"{path} should be a JSON list of rows with condition, seed and samples (a path)")
    return entries


class Comparison:
    """A table of scored sets of samples.

        Args:
            data: the real images.
    extractor: makes the features to compare.
    folder: where the features of the real images are cached.
    device: where to score.
    """

    def __init__(self, data: ImageDataModule, extractor: FeatureExtractor, folder: Path, device: torch.device) -> None:
        data.prepare_data()
        self.data, self.extractor, self.device = data, extractor, device
        self.reference = reference_of(data, extractor, folder, device)
        self.rows: list[Row] = []
        self.formats: dict[str, str] = {}

    def add(self, entry: Mapping[str, Any]) -> Row:
        """Score the samples of one entry of ``read_entries`` and return their row."""
        condition, seed = entry["condition"], entry["seed"]
        samples = open_samples(samples_folder(Path(entry["samples"])))
        self.formats[f"{condition} of seed {seed}"] = samples.format
        progress = tqdm(samples, condition, -(-samples.count // 256), delay=3, leave=False)
        metrics = score(progress, self.reference, self.extractor, self.device)
        shown = samples.first(SHOWN)
        row = Row(condition, seed, metrics, samples.count, float(entry.get("seconds", 0.0)), shown)
        self.rows.append(row)
        return row

    def write(self, out: Path) -> None:
        """Write results.json, results.md, grid.png and protocol.json, with the reference values of real images.

        Raises:
            UserError: the rows have different numbers of samples.
        """
        one_format(self.formats)
        sizes = {row.n for row in self.rows}
        require(len(sizes) == 1, f"rows of {sorted(sizes)} samples cannot be compared: make the same number for each")
        n = sizes.pop()
        real: list[Row] = []
        for seed in sorted({row.seed for row in self.rows}):
            real += reference_rows(self.data, self.reference, self.extractor, n, seed, self.device)
        write_results(out, [*self.rows, *real], self._note(n))
        images = self.data.images("train")
        spec = {"set": "train", "identity": images.fingerprint, "resize": self.data.transform.describe(False)}
        formats = " and ".join(sorted(set(self.formats.values())))
        record = Protocol().record(self.extractor, spec, n, formats)
        write_json(out / "protocol.json", record)

    def _note(self, n: int) -> str:
        train, evaluation = len(self.data.images("train")), len(self.data.images("eval"))
        features = f"{self.extractor.name} ({self.extractor.dim} dimensions, {self.extractor.identity})"
        return (
            f"{n} samples per row, features of {features}, "
            f"reference {train} training and {evaluation} evaluation images. FD depends on the number of samples."
        )

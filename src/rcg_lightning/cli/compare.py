"""`rcg compare`: several sets of samples against the same real images, in one table."""

import json
from pathlib import Path

import torch

from rcg_lightning.cli.parsing import call, echo, progress_bar
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.records import one_format
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.report import Row, floors, write_results
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.types import require

SHOWN = 18  # samples of each row in the image


def compare(
    rows: Path, data: ImageDataModule, extractor: FeatureExtractor, out: Path, accelerator: str = "auto"
) -> None:
    """Score sets of samples by one protocol and write results.json, results.md and grid.png.

    Every row must have the same number of samples, for every metric depends on it. What real images score, held out
    or drawn from the training set, stands below.

    Args:
        rows: JSON list of {"condition", "seed", "samples", "seconds"}; samples as `rcg evaluate` takes them.
        data: the real images.
        extractor: features to compare in.
        out: folder to write to; the real images' features are kept there.
        accelerator: cpu, gpu, mps or auto.
    """
    listed = _read(rows)
    data.prepare_data()
    device = pick_device(accelerator)
    reference = reference_of(data, extractor, out / "reference", device)
    table: list[Row] = []
    formats: dict[str, str] = {}
    for entry in listed:
        samples = open_samples(samples_folder(Path(entry["samples"])))
        formats[f"{entry['condition']} of seed {entry['seed']}"] = samples.format
        watch = progress_bar(samples, entry["condition"], -(-samples.count // 256))
        metrics = score(watch, reference, extractor, device)
        seconds = float(entry.get("seconds", 0.0))
        table.append(Row(entry["condition"], entry["seed"], metrics, samples.count, seconds, samples.first(SHOWN)))
        echo(f"  {entry['condition']}, seed {entry['seed']}: FD {metrics['fd']:.3f}")
    one_format(formats)
    sizes = {row.n for row in table}
    require(len(sizes) == 1, f"rows of {sorted(sizes)} samples cannot be compared: make the same number for each")
    n = sizes.pop()
    for seed in sorted({row.seed for row in table}):
        table += floors(data, reference, extractor, n, seed, device)
    train, evaluation = len(data.images("train")), len(data.images("eval"))
    note = (
        f"{n} samples a row, features of {extractor.name} ({extractor.dim} dimensions, {extractor.identity}), "
        f"reference {train} training and {evaluation} evaluation images. FD depends on the number of samples."
    )
    write_results(out, table, note)
    protocol = Protocol()
    spec = {"set": "train", "identity": data.images("train").fingerprint, "resize": data.transform.describe(False)}
    (out / "protocol.json").write_text(
        json.dumps(protocol.record(extractor, spec, n, " and ".join(sorted(set(formats.values())))), indent=1)
    )


def samples_folder(path: Path) -> Path:
    """Return where the samples lie in a folder that `rcg sample` wrote; any other path is returned as it is."""
    return path / "store" if (path / "store").is_dir() else path


def pick_device(accelerator: str) -> torch.device:
    """Return the device that an accelerator's name means."""
    if accelerator == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator))


def _read(path: Path) -> list[dict]:
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a JSON list of rows: {error}") from error
    wanted = {"condition", "seed", "samples"}
    entries = listed if isinstance(listed, list) else []
    if not entries or not all(isinstance(entry, dict) and wanted <= entry.keys() for entry in entries):
        raise UserError(f"{path} should be a JSON list of rows with condition, seed and samples")
    return entries


def main(name: str, argv: list[str]) -> None:
    call(compare, name, argv, ["rcg compare --rows rows.json --data.source Digits --extractor … --out runs/table"])

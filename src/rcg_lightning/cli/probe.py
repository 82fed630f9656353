"""`rcg probe`: what an encoder's representations are worth."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.cli.compare import pick_device
from rcg_lightning.cli.parsing import call, echo, progress_bar
from rcg_lightning.data.data_module import ImageDataModule, as_floats
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.reference import BATCH
from rcg_lightning.evaluation.results import content_of, report
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.probes import DRAWN, NEIGHBOURS, REGULARISATION
from rcg_lightning.metrics.probes import probe as probed
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import require

ACCURACIES = frozenset({"knn_accuracy", "linear_accuracy"})  # these are of evaluation images


def probe(
    data: ImageDataModule,
    encoder: Encoder | None = None,
    neighbours: int = NEIGHBOURS,
    regularisation: float = REGULARISATION,
    most: int = 200_000,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
) -> None:
    """Probe representations: uniformity, effective rank and, where there are labels, a kNN and a linear probe.

    Either of an encoder, or of the stores that the data join (--data.stores and --data.eval_stores).

    Args:
        data: the images and, for the accuracies, their labels.
        encoder: what makes the representations; without it those of the stores are probed.
        neighbours: k of kNN, by cosine and weighted.
        regularisation: weight of ½|W|² against the sum of the cross entropies, of the linear probe.
        most: use at most so many training images, spread evenly.
        out: JSON file to write metrics and protocol to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    require(most > 1, f"a probe needs at least 2 training images, not {most}")
    data.prepare_data()
    device = pick_device(accelerator)
    if encoder is not None:
        encoder.setup()
    counts = {split: len(data.images(split)) for split in ("train", "eval")}
    require(counts["eval"] > 0, "a probe is of evaluation images, and these data have none")
    count = min(counts["train"], most)
    index = {"train": np.arange(count) * counts["train"] // count, "eval": np.arange(counts["eval"])}
    rows, labels = {}, {}
    for split, chosen in index.items():
        rows[split] = (
            _stored(data, split, chosen) if encoder is None else _encoded(data, encoder, split, chosen, device)
        )
        known = data.images(split).labels
        labels[split] = None if known is None else torch.from_numpy(np.asarray(known)[chosen])
    found = probed(
        rows["train"].to(device),
        labels["train"],
        rows["eval"].to(device),
        labels["eval"],
        neighbours,
        regularisation,
    )
    if labels["train"] is None and not json:
        echo("these data have no labels: no accuracies")
    made_by = encoder.identity if encoder is not None else _identity(data)
    content = content_of([_named(found, count, counts["eval"])], _record(data, made_by, count))
    content |= {"settings": {"neighbours": neighbours, "regularisation": regularisation, "training": count}}
    report(content, out, json)


def _named(found: dict[str, float], train: int, evaluation: int) -> dict[str, float]:
    """Name accuracies by the evaluation images that they are of, the others by training images."""
    return {
        metric_name(kind, "encoder", evaluation, "eval")
        if kind in ACCURACIES
        else metric_name(kind, "encoder", min(train, DRAWN)): value
        for kind, value in found.items()
    }


def _record(data: ImageDataModule, made_by: str, count: int) -> dict[str, object]:
    images = data.images("eval")
    spec = {"set": "eval", "identity": images.fingerprint, "images": len(images)}
    return Protocol("probe").record(made_by, spec | {"resize": data.transform.says(False)}, count)


def _stored(data: ImageDataModule, split: str, index: np.ndarray) -> Tensor:
    """Return stored representations (n, R), of views the first."""
    store = data.columns(split).get("representation")
    if store is None:
        option = "--data.stores" if split == "train" else "--data.eval_stores"
        raise UserError(f"nothing to probe: give --encoder, or a store of rcg extract as {option}")
    return torch.from_numpy(store.read("representation", index)).float()


def _encoded(data: ImageDataModule, encoder: Encoder, split: str, index: np.ndarray, device: torch.device) -> Tensor:
    batches = progress_bar(
        data.plain(split, frozenset({"image"}), index, BATCH), f"encoding {split}", -(-len(index) // BATCH)
    )
    with torch.no_grad():
        return torch.cat([encoder(as_floats(batch)["image"].to(device)).float().cpu() for batch in batches])


def _identity(data: ImageDataModule) -> str:
    made = [str(data.columns(split)["representation"].identity.get("representation")) for split in ("train", "eval")]
    require(made[0] == made[1], f"the stores hold representations of two encoders, {made[0]} and {made[1]}")
    return made[0]


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg probe`; --json may stand without a value."""
    argv = ["--json=true" if word == "--json" else word for word in argv]
    examples = [
        "rcg probe --config digits/data --encoder TrainedEncoder --encoder.folder runs/encoder/encoder",
        "rcg probe --config digits/data --data.stores [runs/store] --data.eval_stores [runs/eval_store]",
    ]
    call(probe, name, argv, examples)

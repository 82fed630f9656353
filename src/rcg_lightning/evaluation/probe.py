"""Probes of representations, which an encoder computes or the stores of the data hold."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rcg_lightning.data.data_module import ImageDataModule, as_floats
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.reference import BATCH
from rcg_lightning.evaluation.results import content_of
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.probes import SUBSET, probe
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import require

ACCURACIES = frozenset({"knn_accuracy", "linear_accuracy"})  # measured on evaluation images


def probe_representations(
    data: ImageDataModule,
    encoder: Encoder | None,
    neighbours: int,
    regularisation: float,
    max_images: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return the results of ``metrics.probes.probe``; unlabelled data have no accuracies.

    Args:
        data: the images and, for the accuracies, their labels.
        encoder: computes the representations; None reads them from the stores of ``data``.
        neighbours, regularisation: see ``metrics.probes.probe``.
        max_images: maximum number of training images, spread evenly.
        device: where to encode and compare.
    """
    data.prepare_data()
    if encoder is not None:
        encoder.setup()
    counts = {split: len(data.images(split)) for split in ("train", "eval")}
    require(counts["eval"] > 0, "a probe needs evaluation images, and these data have none")
    count = min(counts["train"], max_images)
    index = {"train": np.arange(count) * counts["train"] // count, "eval": np.arange(counts["eval"])}
    rows, labels = {}, {}
    for split, chosen in index.items():
        rows[split] = (
            _stored(data, split, chosen) if encoder is None else _encoded(data, encoder, split, chosen, device)
        )
        known = data.images(split).labels
        labels[split] = None if known is None else torch.from_numpy(np.asarray(known)[chosen])
    train, evaluation = rows["train"].to(device), rows["eval"].to(device)
    found = probe(train, labels["train"], evaluation, labels["eval"], neighbours, regularisation)
    made_by = encoder.identity if encoder is not None else _identity(data)
    content = content_of([_named(found, count, counts["eval"])], _record(data, made_by, count))
    return content | {"settings": {"neighbours": neighbours, "regularisation": regularisation, "training": count}}


def _named(found: dict[str, float], train: int, evaluation: int) -> dict[str, float]:
    """Name accuracies by the number of evaluation images, the other metrics by that of training images."""
    return {
        metric_name(kind, "encoder", evaluation, "eval")
        if kind in ACCURACIES
        else metric_name(kind, "encoder", min(train, SUBSET)): value
        for kind, value in found.items()
    }


def _record(data: ImageDataModule, made_by: str, count: int) -> dict[str, object]:
    images = data.images("eval")
    spec = {"set": "eval", "identity": images.fingerprint, "images": len(images)}
    return Protocol("probe").record(made_by, spec | {"resize": data.transform.describe(False)}, count)


def _stored(data: ImageDataModule, split: str, index: np.ndarray) -> Tensor:
    """Return stored representations (n, R), of several views the first."""
    store = data.columns(split).get("representation")
    if store is None:
        option = "--data.stores" if split == "train" else "--data.eval_stores"
        raise UserError(f"nothing to probe: give --encoder, or a store that rcg extract wrote as {option}")
    return torch.from_numpy(store.read("representation", index)).float()


@torch.no_grad()
def _encoded(data: ImageDataModule, encoder: Encoder, split: str, index: np.ndarray, device: torch.device) -> Tensor:
    """Encode images; return representations (n, R) on the CPU."""
    batches = data.deterministic_batches(split, frozenset({"image"}), index, BATCH)
    progress = tqdm(batches, f"encoding {split}", -(-len(index) // BATCH), delay=3, leave=False)
    return torch.cat([encoder(as_floats(batch)["image"].to(device)).float().cpu() for batch in progress])


def _identity(data: ImageDataModule) -> str:
    identities = [
        str(data.columns(split)["representation"].identity.get("representation")) for split in ("train", "eval")
    ]
    train, evaluation = identities
    require(train == evaluation, f"the stores hold representations of two encoders, {train} and {evaluation}")
    return train

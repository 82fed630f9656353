"""The real images that samples are compared with: measured once for a data set and an extractor, stored in a file."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from rcg_lightning.artifacts import check_format, fingerprint, replacing
from rcg_lightning.core.transfers import from_pinned_memory
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.copy_rate import copy_threshold
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.metrics.prdc import NEIGHBOURS, all_radii
from rcg_lightning.pretrained.network_folder import state_fingerprint
from rcg_lightning.types import require

log = logging.getLogger(__name__)

BATCH = 256  # fixed: features of one image set always come from the same batches, so they agree to the last digit
MAX_STORED_FEATURES = 10_000  # of each set, for neighbour metrics, whose cost is quadratic
MAX_STORED_BYTES = 512 * 2**20  # of training images, for distances in pixels
FORMAT = 4  # 4 has a checksum


@dataclass(frozen=True, eq=False)
class RealSet:
    """Features and images of one split.

    Attributes:
        moments: of the features of all images.
        features: (N, d) float32, of at most MAX_STORED_FEATURES; None where only moments are known.
        images: (N, C, H, W) uint8; None where they exceed MAX_STORED_BYTES.
        spatial: moments of the spatial features, for sFID; None where they are unknown.
        size: height and width of the images, None where only moments are known.
    """

    moments: Moments
    features: Tensor | None = None
    images: Tensor | None = None
    spatial: Moments | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """Real training and evaluation images, measured in the features of one extractor.

    Attributes:
        identity: hash of all inputs; empty for moments from another source.
        radii: (N, NEIGHBOURS), distances of the training features to their nearest neighbours.
        copy_threshold: pixel distance to training below which an image counts as a copy.
        name: of the first set in the names of metrics.
    """

    identity: str
    train: RealSet
    evaluation: RealSet | None = None
    radii: Tensor | None = None
    copy_threshold: float | None = None
    name: str = "train"

    @classmethod
    def measure(
        cls,
        train: Tensor | Iterable[Tensor],
        evaluation: Tensor | Iterable[Tensor] | None,
        extractor: FeatureExtractor,
        identity: str = "",
        device: torch.device | str = "cpu",
    ) -> "Reference":
        """Measure uint8 images (N, C, H, W), or batches of them, on ``device``; ``evaluation`` may be None."""
        train_set = _measure(train, extractor, device)
        evaluation_set = None if evaluation is None else _measure(evaluation, extractor, device)
        radii = _radii(train_set.features, device)
        threshold = None
        if evaluation_set is not None and evaluation_set.images is not None and train_set.images is not None:
            threshold = copy_threshold(evaluation_set.images.to(device), train_set.images)
        return cls(identity, train_set, evaluation_set, radii, threshold)

    def save(self, path: Path) -> None:
        """Write a .safetensors file, complete or not at all."""
        tensors: dict[str, Tensor] = {}
        spec: dict[str, Any] = {"format": FORMAT, "identity": self.identity, "copy_threshold": self.copy_threshold}
        for split, real in (("train", self.train), ("eval", self.evaluation)):
            if real is None:
                continue
            values = {"features": real.features, "images": real.images}
            spec[split] = {"size": real.size}
            for name, moments in (("moments", real.moments), ("spatial", real.spatial)):
                if moments is not None:
                    spec[split][name] = {"count": moments.count, "identity": moments.identity}
                    values |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance}
            tensors |= {f"{split}.{name}": value for name, value in values.items() if value is not None}
        if self.radii is not None:
            tensors["radii"] = self.radii
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        written = {"reference": json.dumps(spec), "checksum": _checksum(spec, tensors)}
        with replacing(path, shared=True) as draft:
            save_file(tensors, draft, written)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read a file that ``save`` wrote, or raise UserError."""
        require(path.is_file(), f"no reference at {path}: correct the path or measure it first")
        try:
            with safe_open(path, "pt") as file:
                spec = json.loads(file.metadata()["reference"])
                check_format(spec["format"], FORMAT, f"the reference {path}", "delete it and measure it again")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
                whole = file.metadata()["checksum"] == _checksum(spec, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a reference, or it is damaged: delete it and measure it again") from error
        require(whole, f"{path} is damaged, it does not match its own checksum: delete it and measure it again")

        def split(name: str) -> RealSet | None:
            if name not in spec:
                return None
            known = spec[name]
            moments, spatial = (
                Moments(tensors[f"{name}.{kind}.mean"], tensors[f"{name}.{kind}.covariance"], **known[kind])
                if kind in known
                else None
                for kind in ("moments", "spatial")
            )
            assert moments is not None
            size = tuple(known["size"]) if known["size"] else None
            return RealSet(moments, tensors.get(f"{name}.features"), tensors.get(f"{name}.images"), spatial, size)

        train = split("train")
        assert train is not None
        return cls(spec["identity"], train, split("eval"), tensors.get("radii"), spec["copy_threshold"])

    @classmethod
    def cached(cls, path: Path) -> "Reference | None":
        """Read a file in a cache; None where it is missing, or, with a warning, damaged."""
        try:
            return cls.load(path) if path.is_file() else None
        except UserError as error:
            log.warning("%s; measuring it again", error)
            return None


def _checksum(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return fingerprint([json.loads(json.dumps(spec)), state_fingerprint(tensors)])


def reference_of(
    data: ImageDataModule, extractor: FeatureExtractor, folder: Path | None, device: torch.device | str = "cpu"
) -> Reference:
    """Load the reference of a data set from ``folder``, or measure it and store it there.

    The file name holds the identity, so one folder serves any number of data sets and extractors.
    """
    identity = reference_identity(data, extractor)
    path = None if folder is None else folder / f"reference-{extractor.name}-{identity}.safetensors"
    stored = None if path is None else Reference.cached(path)
    if stored is not None:
        return stored
    evaluation = real_images(data, "eval") if len(data.images("eval")) > 1 else None
    reference = Reference.measure(real_images(data, "train"), evaluation, extractor, identity, device)
    if path is not None:
        reference.save(path)
    return reference


def reference_identity(data: ImageDataModule, extractor: FeatureExtractor) -> str:
    """Return a hash of all inputs of a reference."""
    splits = [data.images(split).fingerprint for split in ("train", "eval")]
    parts = [*splits, data.transform.describe(False), extractor.identity, extractor.spatial_dim]
    parts += [NEIGHBOURS, MAX_STORED_FEATURES, MAX_STORED_BYTES, FORMAT]
    return fingerprint(parts)


def real_images(data: ImageDataModule, split: str, index: np.ndarray | None = None) -> Iterator[Tensor]:
    """Yield uint8 batches (BATCH, C, H, W) of a split, each image in its deterministic view.

    Args:
        index: positions of the images, possibly repeated; all in order by default.
    """
    return (batch["image"] for batch in data.deterministic_batches(split, frozenset({"image"}), index, BATCH))


def batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Cut images (N, C, H, W), or batches of any sizes, into batches of BATCH; the last may be smaller."""
    waiting: list[Tensor] = []
    for part in [images] if isinstance(images, Tensor) else images:
        waiting.append(part)
        if sum(map(len, waiting)) >= BATCH:
            *full, rest = torch.cat(waiting).split(BATCH)
            if len(rest) == BATCH:
                full, rest = [*full, rest], rest[:0]
            yield from full
            waiting = [rest]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)


def _measure(images: Tensor | Iterable[Tensor], extractor: FeatureExtractor, device: torch.device | str) -> RealSet:
    """Extract the features of one split in one pass; memory use does not grow with the split."""
    # every process measures all images itself: nothing is summed over processes
    statistics = FeatureStatistics(
        extractor.dim, extractor.classes, identity=extractor.identity, sync_on_compute=False
    ).to(device)
    spatial = spatial_statistics(extractor, sync_on_compute=False)
    spatial = None if spatial is None else spatial.to(device)
    features: list[Tensor] = []
    stored: list[Tensor] | None = []
    seen, stride = 0, 1
    size: tuple[int, int] | None = None
    for batch in tqdm(batches(images), "measuring real images", delay=3, leave=False):
        pooled, logits, spatial_features = extractor(from_pinned_memory(batch, torch.device(device)))
        statistics.update(pooled, logits)
        if spatial is not None and spatial_features is not None:
            spatial.update(spatial_features)
        size = batch.shape[2], batch.shape[3]
        features.append(pooled[-seen % stride :: stride].clone())  # images whose position is a multiple of the stride
        seen += len(batch)
        if seen > 2 * MAX_STORED_FEATURES * stride:
            features, stride = [torch.cat(features)[::2]], 2 * stride
        if stored is not None:
            stored.append(batch.cpu())
            if sum(part.nbytes for part in stored) > MAX_STORED_BYTES:
                stored = None
    return RealSet(
        statistics.compute().moments.cpu(),
        spread(torch.cat(features), MAX_STORED_FEATURES).cpu(),  # at once: each copy would wait for its batch
        torch.cat(stored) if stored else None,
        None if spatial is None else spatial.compute().moments.cpu(),
        size,
    )


def spatial_statistics(extractor: FeatureExtractor, **settings: Any) -> FeatureStatistics | None:
    """Return statistics for the spatial features of an extractor; None where it has none."""
    if extractor.spatial_dim is None:
        return None
    return FeatureStatistics(extractor.spatial_dim, identity=f"{extractor.identity}-spatial", **settings)


def _radii(features: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if features is None or len(features) <= NEIGHBOURS else all_radii(features.to(device)).cpu()


def spread(rows: Tensor, limit: int) -> Tensor:
    """Return ``limit`` evenly spaced rows, or all where there are no more."""
    if len(rows) <= limit:
        return rows
    return rows[torch.arange(limit, device=rows.device) * len(rows) // limit]

"""How a metric was made, as an object: a metric without it cannot be compared with another.

A ``Protocol`` says what was asked for; ``record`` adds what was found (checksums, file format) and is what is stored
next to every metric; records.py tells whether two records are of one protocol.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.artifacts import file_sha256
from rcg_lightning.config import ConfigMixin, describe
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.records import LOSSLESS
from rcg_lightning.evaluation.reference import Reference, reference_of
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.evaluation.sample_readers import Samples, open_samples
from rcg_lightning.evaluation.scorer import check_size
from rcg_lightning.metrics.feature_extractors import FeatureExtractor, InceptionExtractor
from rcg_lightning.metrics.prdc import NEIGHBOURS, all_radii
from rcg_lightning.metrics.representation_distance import RealRepresentations
from rcg_lightning.types import require, to_uint8

Split = Literal["train", "eval", "statistics"]
Labels = Literal["generated", "balanced", "random"]
Quantisation = Literal["round", "truncate"]
INCEPTION = "inception-6726825d"  # how the identity of the published weights begins


class Protocol(ConfigMixin):
    """A way to make metrics.

    Args:
        name: of the protocol; ``own`` is any that has no name.
        version: grows whenever a setting of a named protocol changes.
        extractor: what makes features; None where the user says.
        weights: how the extractor's identity begins, None where any will do.
        reference: what samples are compared with: a split of the data, or a file of statistics; None: both splits.
        number: samples; None: as many as there are.
        labels: classes as the model draws them, each equally often in turn, or uniformly at random.
        quantisation: how images in [0, 1] become integers; official codes truncate, which darkens by half a level.
        resize: what the transform of the real images says of itself; None: any.
        format: of files that samples are read from, if they are: ``png`` stands for all that lose nothing.
        neighbours: k of precision, recall, density and coverage.
    """

    def __init__(
        self,
        name: str = "own",
        version: int = 1,
        extractor: FeatureExtractor | None = None,
        weights: str | None = None,
        reference: Split | None = None,
        number: int | None = None,
        labels: Labels = "generated",
        quantisation: Quantisation = "round",
        resize: str | None = None,
        format: str = "png",
        neighbours: int = NEIGHBOURS,
    ) -> None:
        self.name, self.version, self.extractor, self.weights = name, version, extractor, weights
        self.reference: Split | None = reference
        self.number = number
        self.labels: Labels = labels
        self.quantisation: Quantisation = quantisation
        self.resize, self.format, self.neighbours = resize, format, neighbours

    def given(self, **settings: Any) -> "Protocol":
        """Return this protocol with those settings that are not None."""
        return type(self)(**{**self._arguments, **{key: value for key, value in settings.items() if value is not None}})

    def quantise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> uint8, rounded or truncated."""
        if self.quantisation == "truncate":
            whole = (images.clamp(0, 1) * 255).floor() / 255  # levels that rounding does not move
            images = torch.where(images.isfinite(), whole, images)
        return to_uint8(images)

    def record(
        self,
        extractor: FeatureExtractor | str,
        reference: Mapping[str, Any],
        number: int,
        format: str = "memory",
        asked: "Protocol | None" = None,
    ) -> dict[str, Any]:
        """Return in plain data how metrics were made.

        Args:
            extractor: the one that was used, or the identity of the encoder whose stored representations are compared.
            reference: what ``bind`` found.
            number: samples scored.
            format: ``memory`` for images that were scored as they were made, else of their files.
            asked: the named protocol that this one is a variant of; what differs from it becomes part of the name.
        """
        made = format == "memory"
        kind, weights = (None, extractor) if isinstance(extractor, str) else (describe(extractor), extractor.identity)
        stored = kind is None
        found: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "extractor": kind,
            "weights": weights,
            "reference": dict(reference),
            "number": number,
            # of images from files it is not known; what `rcg sample` wrote was rounded
            "labels": self.labels if made else None,
            "quantisation": None if stored else self.quantisation if made else "round" if format == "store" else None,
            "resize": reference.get("resize"),
            "format": format,
            "neighbours": None if stored else self.neighbours,
        }
        changed = [] if asked is None or asked.name == "own" else asked._changed(found)
        if changed:
            found["name"] = f"{self.name} with another {', '.join(changed)}"
        return found

    def _changed(self, found: Mapping[str, Any]) -> list[str]:
        """Name the settings in which a record is not of this protocol; what is not known is not named."""
        same = {
            "extractor": self.extractor is None or describe(self.extractor)["class_path"] == _kind(found),
            "weights": found["weights"].startswith(self.weights or ""),
            "reference": self.reference in (None, found["reference"].get("set")),
            "number": self.number in (None, found["number"]),
            "labels": found["labels"] in (None, self.labels),
            "quantisation": found["quantisation"] in (None, self.quantisation),
            "resize": self.resize is None or found["resize"] in (None, self.resize),
            "format": found["format"] in LOSSLESS or found["format"] == self.format,
            "neighbours": found["neighbours"] in (None, self.neighbours),
        }
        return [name for name, kept in same.items() if not kept]


def presets() -> dict[str, Protocol]:
    """Return the named protocols.

    Those of natural images take the published Inception weights; ``digits`` and ``mnist`` a classifier trained on the
    data, whose folder the user gives. ``rep-train`` is of representations.
    """
    inception: dict[str, Any] = {"extractor": InceptionExtractor(), "weights": INCEPTION, "number": 50_000}
    imagenet = inception | {"quantisation": "truncate", "resize": "shorter side 256, centre 256", "neighbours": 3}
    named = [
        Protocol("adm-256", **{**imagenet, "resize": None}, reference="statistics"),
        Protocol("val-50k", **imagenet, reference="eval"),
        Protocol("train-50k", **imagenet, reference="train"),
        Protocol("cifar10-train", **inception, reference="train", quantisation="truncate", resize="as is"),
        Protocol("icgan", **inception, reference="eval"),
        Protocol("digits", weights="classifier-", reference="train", number=1346, resize="as is"),
        Protocol("mnist", weights="classifier-", reference="train", number=10_000, resize="as is"),
        Protocol("rep-train", reference="train", number=50_000),
    ]
    return {protocol.name: protocol for protocol in named}


def find_protocol(name: str) -> Protocol:
    """Return a named protocol, or raise a UserError that knows the nearest name."""
    known = presets()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    require(name in known, f"no protocol {name}: {hint}")
    return known[name]


@dataclass(frozen=True)
class Real:
    """Where the real images, or what stands for them, lie: one of three.

    Attributes:
        data: a data set.
        statistics: a published file.
        samples: other samples, as ``open_samples`` takes them.
        folder: where features are kept for the next time, if anywhere.
    """

    data: ImageDataModule | None = None
    statistics: Path | None = None
    samples: Path | None = None
    folder: Path | None = None

    def check_size(self, shape: tuple[int, int, int]) -> None:
        """Raise a UserError, before any work, where samples (C, H, W) are of another size than the real images."""
        if self.data is not None:
            self.data.prepare_data()
            check_size(shape[1:], self.data.spec.image[1:])
        if self.samples is not None:
            check_size(shape[1:], open_samples(self.samples).shape[1:])

    def bind(
        self, protocol: Protocol, extractor: FeatureExtractor, device: torch.device | str
    ) -> tuple[Reference, dict[str, Any]]:
        """Return the reference that ``protocol`` compares with, and what to record of it; one must be given."""
        given = sum(source is not None for source in (self.data, self.statistics, self.samples))
        require(given > 0, "give what to compare with: either --data or --statistics")
        require(given == 1, "give one thing to compare with: --data, --statistics or --reference_samples")
        if self.statistics is not None:
            return bind_statistics(self.statistics, extractor, device, self.folder)
        if self.samples is not None:
            return bind_samples(self.samples, extractor, device)
        assert self.data is not None
        return bind_data(protocol, self.data, extractor, self.folder, device)


def bind_data(
    protocol: Protocol,
    data: ImageDataModule,
    extractor: FeatureExtractor,
    folder: Path | None,
    device: torch.device | str,
) -> tuple[Reference, dict[str, Any]]:
    """Return the split of the data that a protocol compares with, and what to record of it.

    Without a choice of split metrics are of both. Nearest images and copies are always those of training.
    """
    data.prepare_data()
    real = reference_of(data, extractor, folder, device)
    split = "eval" if protocol.reference == "eval" else "train"
    images = data.images(split)
    spec = {
        "set": split,
        "identity": images.fingerprint,
        "images": len(images),
        "resize": data.transform.describe(False),
    }
    if split == "eval":
        seen = real.evaluation
        if seen is None or seen.features is None:
            raise UserError(f"protocol {protocol.name} compares with evaluation images: these data have too few")
        near = all_radii(seen.features.to(device)).cpu() if len(seen.features) > NEIGHBOURS else None
        seen = replace(seen, images=real.train.images)
        return replace(real, train=seen, evaluation=None, radii=near, name="eval"), spec
    return (real if protocol.reference is None else replace(real, evaluation=None)), spec


def bind_statistics(
    path: Path, extractor: FeatureExtractor, device: torch.device | str, folder: Path | None = None
) -> tuple[Reference, dict[str, Any]]:
    """Return the reference that a file of statistics is, and what to record of it: its name and SHA-256.

    Features of images in the file are kept in ``folder``, by default the user's cache.
    """
    real = read_statistics(path, extractor, device, folder)
    return real, {"set": "statistics", "file": path.name, "identity": file_sha256(path)}


def bind_samples(
    path: Path, extractor: FeatureExtractor, device: torch.device | str
) -> tuple[Reference, dict[str, Any]]:
    """Return other samples as the reference, and what to record of them: a SHA-256 of all their pixels."""
    samples, digest = open_samples(path), hashlib.sha256()
    real = Reference.measure(_digested(samples, digest), None, extractor, device=device)
    real = replace(real, train=replace(real.train, images=None), name="samples")  # no training images to be copied
    return real, {"set": "samples", "identity": digest.hexdigest(), "images": samples.count, "format": samples.format}


def bind_representations(data: ImageDataModule) -> tuple[RealRepresentations, dict[str, Any]]:
    """Return the stored representations that a data module joins, and what to record of them.

    Raises:
        UserError: it joins none of the training images.
    """
    data.prepare_data()
    train = data.columns("train").get("representation")
    if train is None:
        raise UserError("representations are compared with stored ones: join a store of rcg extract by --data.stores")
    real = RealRepresentations(train, data.columns("eval").get("representation"))
    transform = train.identity.get("transform")
    return real, {
        "set": "train",
        "identity": train.identity.get("dataset"),
        "images": real.count,
        "resize": transform,
    }


def _digested(samples: Samples, digest: Any) -> Iterator[Tensor]:
    for batch in samples:
        digest.update(batch.numpy().tobytes())
        yield batch


def _kind(found: Mapping[str, Any]) -> str:
    return found["extractor"]["class_path"]

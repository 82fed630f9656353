"""Protocols: how a metric is computed. Without its protocol, a metric cannot be compared with another.

A ``Protocol`` holds the requested settings. ``record`` adds what was found (checksums, file format); its result is
stored next to every metric. records.py checks whether two records have the same protocol.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import file_sha256
from rcg_lightning.config import ConfigMixin, describe
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.records import LOSSLESS
from rcg_lightning.evaluation.reference import Reference, reference_of
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.evaluation.sample_readers import AS_IS, Samples, open_samples
from rcg_lightning.evaluation.scorer import check_size
from rcg_lightning.metrics.feature_extractors import FeatureExtractor, InceptionExtractor
from rcg_lightning.metrics.prdc import NEIGHBOURS, all_radii
from rcg_lightning.metrics.representation_distance import RealRepresentations
from rcg_lightning.types import require, to_uint8

Split = Literal["train", "eval", "statistics"]
Labels = Literal["generated", "balanced", "random"]
Quantisation = Literal["round", "truncate"]
INCEPTION = "inception-6726825d"  # start of the identity of the published weights


class Protocol(ConfigMixin):
    """The settings by which metrics are computed.

    Args:
        name: of the protocol; ``own`` for any that has no name.
        version: grows whenever a setting of a named protocol changes.
        extractor: makes the features; None where the user chooses it.
        weights: start of the extractor's identity; None allows any.
        reference: real images to compare with: a split of the data, or a file of statistics; None: both splits.
        number: samples; None takes all.
        labels: classes as the model samples them, each equally often in turn, or uniformly at random.
        quantisation: from [0, 1] to uint8; official codes truncate, which darkens by half a grey value.
        resize: description of the transform of the real images; None allows any.
        format: of the files that hold the samples, if any; ``png`` stands for every lossless format.
        neighbours: k of precision, recall, density and coverage.
    """

    def __init__(
        self,
        name: str = "own",
        version: PositiveInt = 1,
        extractor: FeatureExtractor | None = None,
        weights: str | None = None,
        reference: Split | None = None,
        number: PositiveInt | None = None,
        labels: Labels = "generated",
        quantisation: Quantisation = "round",
        resize: str | None = None,
        format: str = "png",
        neighbours: PositiveInt = NEIGHBOURS,
    ) -> None:
        self.name, self.version, self.extractor, self.weights = name, version, extractor, weights
        self.reference: Split | None = reference
        self.number = number
        self.labels: Labels = labels
        self.quantisation: Quantisation = quantisation
        self.resize, self.format, self.neighbours = resize, format, neighbours

    def with_settings(self, **settings: Any) -> "Protocol":
        """Return a copy with those settings that are not None."""
        return type(self)(**{**self._arguments, **{key: value for key, value in settings.items() if value is not None}})

    def quantise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> uint8, rounded or truncated."""
        if self.quantisation == "truncate":
            whole = (images.clamp(0, 1) * 255).floor() / 255  # values that rounding does not change
            images = torch.where(images.isfinite(), whole, images)
        return to_uint8(images)

    def record(
        self,
        extractor: FeatureExtractor | str,
        reference: Mapping[str, Any],
        number: int,
        format: str = "memory",
        asked: "Protocol | None" = None,
        samples_resize: str = AS_IS,
    ) -> dict[str, Any]:
        """Describe, as plain data, how metrics were computed.

        Args:
            extractor: the one used, or the identity of the encoder whose stored representations are compared.
            reference: description of the real images, from ``bind``.
            number: samples scored.
            format: ``memory`` for images that were scored when they were generated, else that of their files.
            asked: the named protocol of which this is a variant; the settings that differ become part of the name.
            samples_resize: description of the transform that the samples went through before they were scored.
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
            # unknown for images from files; `rcg sample` rounds
            "labels": self.labels if made else None,
            "quantisation": None if stored else self.quantisation if made else "round" if format == "store" else None,
            "resize": reference.get("resize"),
            "samples_resize": None if stored else samples_resize,
            "format": format,
            "neighbours": None if stored else self.neighbours,
        }
        changed = [] if asked is None or asked.name == "own" else asked._changed(found)
        if changed:
            found["name"] = f"{self.name} with another {', '.join(changed)}"
        return found

    def _changed(self, found: Mapping[str, Any]) -> list[str]:
        """Name the settings in which a record differs from this protocol; unknown settings are not named."""
        same = {
            "extractor": self.extractor is None or describe(self.extractor)["class_path"] == _kind(found),
            "weights": found["weights"].startswith(self.weights or ""),
            "reference": self.reference in (None, found["reference"].get("set")),
            "number": self.number in (None, found["number"]),
            "labels": found["labels"] in (None, self.labels),
            "quantisation": found["quantisation"] in (None, self.quantisation),
            "resize": self.resize is None or found["resize"] in (None, self.resize),
            "resize of samples": found["samples_resize"] in (None, AS_IS),
            "format": found["format"] in LOSSLESS or found["format"] == self.format,
            "neighbours": found["neighbours"] in (None, self.neighbours),
        }
        return [name for name, equal in same.items() if not equal]


def presets() -> dict[str, Protocol]:
    """Return the named protocols.

    Protocols of natural images take the published Inception weights. ``digits`` and ``mnist`` take a classifier trained
    on the data, whose folder the user gives. ``rep-train`` compares representations.
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
    """Return a named protocol, or raise a UserError with the nearest name."""
    known = presets()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    require(name in known, f"no protocol {name}: {hint}")
    return known[name]


@dataclass(frozen=True)
class RealSource:
    """Source of the real images or of their statistics: one of three.

    Attributes:
        data: a data set.
        statistics: a published file of statistics.
        samples: path of other samples, for ``open_samples``.
        folder: cache of features; None caches nothing.
        resize: for other samples, see ``open_samples``.
    """

    data: ImageDataModule | None = None
    statistics: Path | None = None
    samples: Path | None = None
    folder: Path | None = None
    resize: int | None = None

    def check_size(self, shape: tuple[int, int, int]) -> None:
        """Raise a UserError, before any work, where samples (C, H, W) differ in size from the real images."""
        if self.data is not None:
            self.data.prepare_data()
            check_size(shape[1:], self.data.spec.image[1:])
        if self.samples is not None:
            check_size(shape[1:], open_samples(self.samples, resize=self.resize).shape[1:])

    def bind(
        self, protocol: Protocol, extractor: FeatureExtractor, device: torch.device | str
    ) -> tuple[Reference, dict[str, Any]]:
        """Return the reference that ``protocol`` compares with, and its description for the record."""
        given = sum(source is not None for source in (self.data, self.statistics, self.samples))
        require(given > 0, "give real images to compare with: either --data or --statistics")
        require(given == 1, "give one reference only: --data, --statistics or --reference_samples")
        if self.statistics is not None:
            return bind_statistics(self.statistics, extractor, device, self.folder)
        if self.samples is not None:
            return bind_samples(self.samples, extractor, device, self.resize)
        assert self.data is not None
        return bind_data(protocol, self.data, extractor, self.folder, device)


def bind_data(
    protocol: Protocol,
    data: ImageDataModule,
    extractor: FeatureExtractor,
    folder: Path | None,
    device: torch.device | str,
) -> tuple[Reference, dict[str, Any]]:
    """Return the split of the data that a protocol compares with, and its description for the record.

    A protocol without a split compares with both. Nearest images and copies are always searched in the training images.
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
        evaluation = real.evaluation
        if evaluation is None or evaluation.features is None:
            raise UserError(f"protocol {protocol.name} compares with evaluation images: these data have too few")
        enough = len(evaluation.features) > NEIGHBOURS
        radii = all_radii(evaluation.features.to(device)).cpu() if enough else None
        evaluation = replace(evaluation, images=real.train.images)
        return replace(real, train=evaluation, evaluation=None, radii=radii, name="eval"), spec
    return (real if protocol.reference is None else replace(real, evaluation=None)), spec


def bind_statistics(
    path: Path, extractor: FeatureExtractor, device: torch.device | str, folder: Path | None = None
) -> tuple[Reference, dict[str, Any]]:
    """Return a file of statistics as a reference, and its description for the record: name and SHA-256.

    Features of images in the file are cached in ``folder``, by default the user's cache.
    """
    real = read_statistics(path, extractor, device, folder)
    return real, {"set": "statistics", "file": path.name, "identity": file_sha256(path)}


def bind_samples(
    path: Path, extractor: FeatureExtractor, device: torch.device | str, resize: int | None = None
) -> tuple[Reference, dict[str, Any]]:
    """Return other samples as the reference, and their description for the record: a SHA-256 of all pixels."""
    samples, digest = open_samples(path, resize=resize), hashlib.sha256()
    real = Reference.measure(_hashing(samples, digest), None, extractor, device=device)
    # these are no training images, so none can be copied
    real = replace(real, train=replace(real.train, images=None), name="samples")
    spec = {"set": "samples", "identity": digest.hexdigest(), "images": samples.count}
    return real, spec | {"resize": samples.resize, "format": samples.format}


def bind_representations(data: ImageDataModule) -> tuple[RealRepresentations, dict[str, Any]]:
    """Return the stored representations of a data module, and their description for the record.

    Raises:
        UserError: no store holds representations of the training images.
    """
    data.prepare_data()
    train = data.columns("train").get("representation")
    if train is None:
        raise UserError(
            "representations are compared with stored ones: give a store that rcg extract wrote as --data.stores"
        )
    real = RealRepresentations(train, data.columns("eval").get("representation"))
    spec = {"set": "train", "identity": train.identity.get("dataset"), "images": real.count}
    return real, spec | {"resize": train.identity.get("transform")}


def _hashing(samples: Samples, digest: Any) -> Iterator[Tensor]:
    for batch in samples:
        digest.update(batch.numpy().tobytes())
        yield batch


def _kind(found: Mapping[str, Any]) -> str:
    return found["extractor"]["class_path"]

"""What passes between the reference values: batches, the data spec, and the interfaces that stages are written against."""

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError


class Batch(TypedDict, total=False):
    """Named tensors of one batch; a key is there only where the data has it and the stage needs it."""

    image: Tensor  # (B, C, H, W) float32 in [0, 1]; uint8 until it is on the device
    pair: Tensor  # a second random view of the same image, like image
    label: Tensor  # (B,) int64
    index: Tensor  # (B,) int64, position in the data set: the key of a store
    view: Tensor  # (B,) int64, which stored view of the image
    seed: Tensor  # (B,) int64, the name of a sample to be generated
    representation: Tensor  # (B, R) float32
    instance: Tensor  # (B, R) float32, the representation of the image among whose neighbours this one was drawn
    cluster: Tensor  # (B,) int64
    tag: Tensor  # (B,) int64, one of the image's words: its place in the vocabulary
    tokens: Tensor  # (B, N) int64, row by row: indices into a codebook
    latent: Tensor  # (B, *S) float32, what an autoencoder makes of the image


@dataclass(frozen=True)
class DataSpec:
    """What a stage must know of its data to build its networks. Plain data: it travels in the checkpoint.

    Attributes:
        image: (C, H, W) of a image in a batch.
        classes: number of classes, None where the data has no labels.
        columns: name of each stored column to its data spec, at least ``shape`` (of one row) and, for integer columns that
            count something, ``count``.
        identities: fingerprints by name: ``dataset``, and one for each column (the encoder that made it).
    """

    image: tuple[int, int, int]
    classes: int | None = None
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)

    @property
    def encoded_online(self) -> bool:
        """Whether a stage noted here what its own encoder makes: then the encoder is not needed to size networks."""
        return self.columns.get("representation", {}).get("online", False)

    def plain(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {**asdict(self), "image": list(self.image)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "DataSpec":
        """Invert ``plain``."""
        return cls(**{**plain, "image": tuple(plain["image"])})


@dataclass(frozen=True)
class Classes:
    """One part of a condition: an integer in [0, count), as (B,) int64."""

    count: int


@dataclass(frozen=True)
class Vector:
    """One part of a condition: a vector, as (B, dim) float32."""

    dim: int


Part = Classes | Vector
Raw = tuple[Tensor, ...]  # a raw condition: one tensor for each part, () where there is none


class Condition(ConfigMixin):
    """Where a condition comes from: observed on a real batch, or sampled for generation. Has no parameters."""

    needs: frozenset[str] = frozenset()  # keys of the batch that observe() reads

    @abstractmethod
    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        """Return what the raw condition consists of; raise UserError where the data cannot give it."""

    @abstractmethod
    def observe(self, batch: Batch) -> Raw:
        """Return the raw condition of a real batch (training)."""

    @abstractmethod
    def sample(self, batch: Batch) -> Raw:
        """Return a raw condition for each ``batch["seed"]`` (generation); what the batch holds already is used."""

    def completed(self, batch: Batch) -> Batch:
        """Return a batch to be sampled, with what this condition draws that others joined to it must agree with."""
        return batch

    @property
    def prior(self) -> nn.Module | None:
        """The generator that the condition is sampled from, loaded; None where there is none."""
        return None

    def use_prior(self, path: Path) -> None:
        """Sample from the generator whose checkpoint is at ``path``, where the condition is sampled from one."""

    def use_instances(self, path: Path) -> None:
        """Sample from the store of instances at ``path``, where the condition is an instance."""


class Codec(ConfigMixin):
    """What a generator models instead of images: pixels, latents, tokens or representations."""

    needs: frozenset[str] = frozenset({"image"})  # keys of the batch that encode() reads
    makes: str = "image"  # key of the batch that decode() would fill
    stream: int = 0  # keeps the noise of different spaces apart where one seed is used for both

    @abstractmethod
    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """Return the shape of one encoded example."""

    def count(self, spec: DataSpec) -> int | None:
        """Return how many values an entry of z can take; None where z is continuous."""
        return None

    def use_autoencoder(self, folder: Path) -> None:
        """Encode and decode with the autoencoder at ``folder``.

        Raises:
            UserError: it is another one than data or checkpoint are of, or this codec has none.
        """
        raise UserError(f"the autoencoder {folder} is of no use: {type(self).__name__} encodes and decodes without one")

    def check_decoding(self) -> None:
        """Raise UserError where something is missing without which ``decode`` cannot work, such as an autoencoder."""

    def noted(self, spec: DataSpec) -> DataSpec:
        """Return ``data spec`` with what the codec itself makes of images noted, as if it were a stored column."""
        return spec

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Return z (B, *shape) without gradient."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return what z stands for: images (B, C, H, W) in [0, 1], or representations (B, R)."""


class Backbone(ConfigMixin, nn.Module):
    """A network that a Denoiser trains. Sizes that follow from the data go to ``build``, not to the constructor."""

    condition_width: int  # natural width of a condition embedding for this network

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        """Create the parameters for inputs of ``shape`` and outputs of ``out_factor`` times the channels."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x (B, *shape), k (B,) timestep, c (B, condition_dim) -> (B, *shape), times out_factor in the channels.

        ``t`` of shape (1,) is the level of all rows, as in sampling.
        """


def to_uint8(image: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8, rounded: the one place where images are quantised.

    Raises:
        UserError: a image holds NaN or infinity, which as uint8 would be just some colour.
    """
    broken = int((~image.isfinite()).flatten(1).any(1).sum())
    require(
        broken == 0,
        f"{broken} of {len(image)} images hold NaN or infinity: the network has diverged or lacks precision",
    )
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def require(condition: bool, message: str) -> None:
    """Raise a UserError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)

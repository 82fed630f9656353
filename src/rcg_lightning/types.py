"""Types that all layers share: batches, the data spec, and the interfaces that stages are written against."""

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import ImageSize, PositiveInt, check_arguments
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.errors import UserError


class Batch(TypedDict, total=False):
    """Named tensors of one batch. A key is present only if the data has it and the stage needs it."""

    image: Tensor  # (B, C, H, W) float32 in [0, 1]; uint8 until it is on the device
    pair: Tensor  # a second random view of the same image, like image
    label: Tensor  # (B,) int64
    index: Tensor  # (B,) int64, position in the data set: the key of a store
    view: Tensor  # (B,) int64, which stored view of the image
    seed: Tensor  # (B,) int64, the name of a sample to generate; on the host, where sampling is planned, or the device
    position: Tensor  # (B,) int64, on the host: which row of which tile computes the sample, see ``tile_rows``
    representation: Tensor  # (B, R) float32
    instance: Tensor  # (B, R) float32, representation of the image whose neighbour this image was chosen as
    cluster: Tensor  # (B,) int64
    tag: Tensor  # (B,) int64, one of the image's tags: its index in the vocabulary
    tokens: Tensor  # (B, N) int64 indices into a codebook, row by row of the image
    latent: Tensor  # (B, *S) float32, the image encoded by an autoencoder


@dataclass(frozen=True)
class DataSpec:
    """Properties of the data from which a stage builds its networks. Plain data, stored in the checkpoint.

    Attributes:
        image: (C, H, W) of an image in a batch.
        classes: number of classes, None if the data has no labels.
        columns: name of each stored column to its description: at least ``shape`` (of one row) and, for integers in
            [0, count), ``count``.
        identities: fingerprints by name: ``dataset``, and one for each column (the encoder that made it).
    """

    image: tuple[ImageSize, ImageSize, ImageSize]
    classes: PositiveInt | None = None
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)

    @property
    def encoded_online(self) -> bool:
        """Whether a stage has described its own encoder's output here: then networks are sized without the encoder."""
        return self.columns.get("representation", {}).get("online", False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {**asdict(self), "image": list(self.image)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "DataSpec":
        """Invert ``to_dict``; raise UserError for anything else."""
        try:
            arguments = {**data, "image": tuple(data["image"])}
            check_arguments(cls.__init__, arguments, "data spec: ")
            return cls(**arguments)
        except (TypeError, KeyError) as error:
            raise UserError(f"the data spec is damaged ({error}): make the file again") from error


@dataclass(frozen=True)
class Classes:
    """One part of a condition: an integer in [0, count), as (B,) int64."""

    count: int


@dataclass(frozen=True)
class Vector:
    """One part of a condition: a vector, as (B, dim) float32."""

    dim: int


Part = Classes | Vector
Raw = tuple[Tensor, ...]  # a raw condition: one tensor for each part, () for no condition


class Condition(ConfigMixin):
    """Source of a condition: observed on a real batch, or sampled for generation. Has no parameters."""

    needs: frozenset[str] = frozenset()  # keys of the batch that observe() reads

    @abstractmethod
    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        """Return the parts of the raw condition; raise UserError if the data does not have them."""

    @abstractmethod
    def observe(self, batch: Batch) -> Raw:
        """Return the raw condition of a real batch (training)."""

    @abstractmethod
    def sample(self, batch: Batch) -> Raw:
        """Return a raw condition for each ``batch["seed"]`` (generation), with values that the batch already has."""

    def completed(self, batch: Batch) -> Batch:
        """Return the batch with the values sampled here that the other parts of a joint condition must agree with."""
        return batch

    @property
    def prior(self) -> nn.Module | None:
        """The loaded generator that the condition is sampled from, or None."""
        return None

    def use_prior(self, path: Path) -> None:
        """Sample from the generator whose checkpoint is at ``path``, if the condition is sampled from a generator."""

    def use_instances(self, path: Path) -> None:
        """Sample from the store of instances at ``path``, if the condition is an instance."""


class Codec(ConfigMixin):
    """The space that a generator models: pixels, latents, tokens or representations."""

    needs: frozenset[str] = frozenset({"image"})  # keys of the batch that encode() reads
    makes: str = "image"  # key of the batch that decode() corresponds to
    stream: int = 0  # separates the noise of two spaces that are sampled with one seed
    tile: int = 64  # samples that are computed together, unless the generator sets another number

    @abstractmethod
    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """Return the shape of one encoded example."""

    def count(self, spec: DataSpec) -> int | None:
        """Return how many values an entry of z can take; None if z is continuous."""
        return None

    def use_autoencoder(self, folder: Path) -> None:
        """Encode and decode with the autoencoder at ``folder``.

        Raises:
            UserError: the data or the checkpoint belong to another autoencoder, or this codec uses none.
        """
        raise UserError(f"the autoencoder {folder} is of no use: {type(self).__name__} encodes and decodes without one")

    def set_precision(self, precision: FrozenPrecision) -> None:
        """Encode and decode in ``precision``; raise UserError where no network does."""
        raise UserError(f"--autoencoder_precision {precision} is of no use: {type(self).__name__} has no autoencoder")

    def check_decoding(self) -> None:
        """Raise UserError if ``decode`` lacks something it needs, such as an autoencoder."""

    def extend_spec(self, spec: DataSpec) -> DataSpec:
        """Return ``spec`` with the codec's own encodings of images described as if they were a stored column."""
        return spec

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Return z (B, *shape) without gradient."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Decode z (B, *shape) to images (B, C, H, W) in [0, 1], or to representations (B, R)."""


class Backbone(ConfigMixin, nn.Module):
    """A network that a Denoiser trains. Sizes that follow from the data go to ``build``, not to the constructor."""

    condition_width: int  # natural width of a condition embedding for this network

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int, out_factor: int = 1) -> None:
        """Create the parameters for inputs of ``shape`` and outputs of ``out_factor`` times the channels."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x (B, *shape), timesteps t (B,), c (B, condition_dim) -> (B, *shape), times out_factor in the channels.

        ``t`` of shape (1,) is the timestep of all examples, as in sampling.
        """


def to_uint8(image: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8, rounded. Images are quantised here and nowhere else.

    Raises:
        UserError: an image contains NaN or infinity, which uint8 would turn into some colour.
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

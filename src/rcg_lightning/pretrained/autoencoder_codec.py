"""Base of the codecs whose z a frozen autoencoder makes."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from rcg_lightning.core.precision import FrozenPrecision, without_precision
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.autoencoders import Autoencoder
from rcg_lightning.types import Batch, Codec, DataSpec, require

Kind = TypeVar("Kind", bound=Autoencoder)


class AutoencoderCodec(Codec, Generic[Kind]):
    """Encodings of images by a frozen autoencoder, read from a store or made from the images of each batch.

    Training from a store needs no autoencoder; decoding does. The stored column, the checkpoint and the given
    autoencoder must agree in the autoencoder's identity.

    Args:
        folder: the autoencoder's network folder; never part of a checkpoint.
        stored: whether batches carry stored encodings; otherwise they carry images.
        precision: of the autoencoder: ``highest`` is float32; ``high`` (TF32 on NVIDIA GPUs) and ``bf16`` are faster on
            GPUs and part of the identity of what it makes.
    """

    column: ClassVar[str]  # of the store, and key of the batch

    def __init__(self, folder: Path | None = None, stored: bool = True, precision: FrozenPrecision = "highest") -> None:
        self.folder, self.stored = folder, stored
        self.precision: FrozenPrecision = precision
        self.needs = frozenset({self.column if stored else "image"})
        self._autoencoder: Kind | None = None if folder is None else self.open(folder)
        self._spec: DataSpec | None = None  # the one that networks were built for

    @abstractmethod
    def open(self, folder: Path) -> Kind:
        """Return the autoencoder at ``folder``; its first use reads it."""

    @abstractmethod
    def encoded(self, image: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [0, 1] to the values that a store holds."""

    def packed(self, values: Tensor) -> Tensor:
        """Convert the result of ``encoded`` to the dtype of a store."""
        return values

    @abstractmethod
    def column_spec(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Describe the column that images (C, H, W) are encoded to: at least its ``shape``.

        Raises:
            UserError: such images do not fit the autoencoder.
        """

    def from_stored(self, values: Tensor, batch: Batch) -> Tensor:
        """Stored values of a batch's images -> z."""
        return values

    def shape_of(self, column: dict[str, Any]) -> tuple[int, ...]:
        """Return the shape of z for the description of a column."""
        return tuple(column["shape"])

    # -- the autoencoder -----------------------------------------------------------------------------------------------

    @property
    def autoencoder(self) -> Kind:
        """The autoencoder; UserError if none was given, or another one than that of the store or the checkpoint."""
        if self._autoencoder is None:
            raise UserError(
                f"{type(self).__name__} needs its autoencoder to encode and decode images: give its folder, with "
                "--autoencoder to a command, as codec.folder in a config"
            )
        if self._spec is not None:
            self.check(self._autoencoder, str(self.folder or "the given network"))
        return self._autoencoder

    @property
    def spec(self) -> DataSpec:
        """The data spec; UserError before networks were built for one."""
        require(self._spec is not None, f"{type(self).__name__} has seen no data: build the generator first")
        return self._spec  # type: ignore[return-value]

    @property
    def identity(self) -> str:
        """The autoencoder's identity."""
        return self.autoencoder.identity

    def use_autoencoder(self, folder: Path) -> None:
        given = self.open(folder)
        if self._spec is not None:
            self.check(given, str(folder))
        self._autoencoder = given

    def set_precision(self, precision: FrozenPrecision) -> None:
        self.precision = precision
        if self._autoencoder is not None:
            self._autoencoder.precision = precision

    def check_decoding(self) -> None:
        _ = self.autoencoder

    def check(self, autoencoder: Kind, where: str) -> None:
        """Raise UserError unless ``autoencoder``, from ``where``, made the data in the store or of the training."""
        known = self.spec.identities.get(self.column)
        require(
            known is None or without_precision(known) == without_precision(autoencoder.identity),
            f"{where} is the autoencoder {autoencoder.identity}, but {known} made the {self.column} here: give it",
        )

    # -- for stages --------------------------------------------------------------------------------------------------

    def extend_spec(self, spec: DataSpec) -> DataSpec:
        """Return ``spec`` with the encodings described that this codec makes; a stored column stays as it is."""
        if self.stored or spec.columns.get(self.column, {}).get("online"):
            return spec
        made = {**self.column_spec(spec.image), "online": True}
        identities = {**spec.identities, self.column: self.identity}
        return replace(spec, columns={**spec.columns, self.column: made}, identities=identities)

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return self.shape_of(self._column(spec))

    def count(self, spec: DataSpec) -> int | None:
        return self._column(spec).get("count")

    def _column(self, spec: DataSpec) -> dict[str, Any]:
        """Return the description of the column that is read or made; remember ``spec``."""
        self._spec, found = spec, spec.columns.get(self.column)
        if found is None or not (self.stored or found.get("online")):
            require(
                self._autoencoder is not None,
                f"the data has no stored {self.column}: extract them into a store and join it, or encode images, "
                "with the folder of an autoencoder and stored: false",
            )
            return self.column_spec(spec.image)
        if self.folder is not None:  # one that must be fetched is checked at its first use
            _ = self.autoencoder
        return found

    def encode(self, batch: Batch) -> Tensor:
        """Return z (B, *shape), from the stored values in the batch or else from ``batch["image"]``."""
        values: Tensor | None = batch.get(self.column) if self.stored else None  # type: ignore[assignment]
        if values is None:
            with torch.no_grad():
                values = self.encoded(batch["image"]).contiguous()  # noise like it is then laid out as for stored rows
        return self.from_stored(values, batch)

    def report(self) -> str:
        """Describe the codec and its autoencoder."""
        autoencoder = self.autoencoder
        return f"{type(self).__name__}: by {type(autoencoder.network).__name__} {autoencoder.identity}"

"""What generators model in place of images where an autoencoder makes it: the base of such codecs."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.autoencoders import Autoencoder
from rcg_lightning.types import Batch, Codec, DataSpec, require

Kind = TypeVar("Kind", bound=Autoencoder)


class AutoencoderCodec(Codec, Generic[Kind]):
    """What a frozen autoencoder makes of images: stored with the data, or encoded from the images of each batch.

    Training from a store needs no autoencoder, decoding does. Stored column, checkpoint and the autoencoder that is
    given must agree in the autoencoder's identity.

    Args:
        folder: of the autoencoder's network; never part of a checkpoint.
        stored: whether batches carry what a store holds; otherwise they carry images.
    """

    column: ClassVar[str]  # of the store, and key of the batch

    def __init__(self, folder: Path | None = None, stored: bool = True) -> None:
        self.folder, self.stored = folder, stored
        self.needs = frozenset({self.column if stored else "image"})
        self._autoencoder: Kind | None = None if folder is None else self.open(folder)
        self._spec: DataSpec | None = None  # those that networks were built for

    @abstractmethod
    def open(self, folder: Path) -> Kind:
        """Return the autoencoder at ``folder``, which is read when it is used."""

    @abstractmethod
    def encoded(self, image: Tensor) -> Tensor:
        """Return what a store holds of images (B, C, H, W) in [0, 1]."""

    def packed(self, values: Tensor) -> Tensor:
        """What ``encoded`` returns, in the type that a store has it in."""
        return values

    @abstractmethod
    def column_spec(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return the data spec of the column that is made of images (C, H, W), at least its ``shape``.

        Raises:
            UserError: such images do not fit the autoencoder.
        """

    def of_stored(self, values: Tensor, batch: Batch) -> Tensor:
        """What a store holds of the images of a batch, as batches carry it -> z."""
        return values

    def shape_of(self, column: dict[str, Any]) -> tuple[int, ...]:
        """Return the shape of z for the data spec of a column."""
        return tuple(column["shape"])

    # -- the autoencoder -----------------------------------------------------------------------------------------------

    @property
    def autoencoder(self) -> Kind:
        """The autoencoder; UserError where none was given, or not the one of stored columns or checkpoint."""
        if self._autoencoder is None:
            raise UserError(
                f"{type(self).__name__} needs its autoencoder to make images and to read them: give the folder, as "
                "--autoencoder to a command, as codec.folder in a config"
            )
        if self._spec is not None:
            self.check(self._autoencoder, str(self.folder or "what is given"))
        return self._autoencoder

    @property
    def spec(self) -> DataSpec:
        """What is known of the data; UserError before networks were built for any."""
        require(self._spec is not None, f"{type(self).__name__} has seen no data: build the generator first")
        return self._spec  # type: ignore[return-value]

    @property
    def identity(self) -> str:
        """What names the autoencoder."""
        return self.autoencoder.identity

    def use_autoencoder(self, folder: Path) -> None:
        given = self.open(folder)
        if self._spec is not None:
            self.check(given, str(folder))
        self._autoencoder = given

    def check_decoding(self) -> None:
        _ = self.autoencoder

    def check(self, autoencoder: Kind, where: str) -> None:
        """Raise UserError where an autoencoder is not the one that what is stored, or was trained on, came from."""
        known = self.spec.identities.get(self.column)
        require(
            known is None or known == autoencoder.identity,
            f"{where}: the autoencoder {autoencoder.identity}, but the {self.column} here are of {known}: give theirs",
        )

    # -- what stages ask -----------------------------------------------------------------------------------------------

    def extend_spec(self, spec: DataSpec) -> DataSpec:
        """Return data spec with what this codec makes of images by itself; those of a stored column stay as they are."""
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
        """Return the data spec of the column that is read, or made; remember for what."""
        self._spec, found = spec, spec.columns.get(self.column)
        if found is None or not (self.stored or found.get("online")):
            require(
                self._autoencoder is not None,
                f"the data have no stored {self.column}: extract them into a store and join it, or encode images, "
                "with the folder of an autoencoder and stored: false",
            )
            return self.column_spec(spec.image)
        if self.folder is not None:  # what would have to be fetched is checked when it is used
            _ = self.autoencoder
        return found

    def encode(self, batch: Batch) -> Tensor:
        """Return z (B, *shape), of what the batch carries, or of ``batch["image"]``."""
        values: Tensor | None = batch.get(self.column) if self.stored else None  # type: ignore[assignment]
        if values is None:
            with torch.no_grad():
                values = self.encoded(batch["image"]).contiguous()  # noise of its layout is then that of a store's rows
        return self.of_stored(values, batch)

    def report(self) -> str:
        """Say what the codec makes, and by what."""
        autoencoder = self.autoencoder
        return f"{type(self).__name__}: by {type(autoencoder.network).__name__} {autoencoder.identity}"

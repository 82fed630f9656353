"""One batch from its keys: images decoded and cut, labels and stored columns joined, in the loader's worker."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rcg_lightning.data import numpy_rng
from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.data.index_samplers import Keys
from rcg_lightning.data.store import Store
from rcg_lightning.data.transforms import AsIs, Transform, Views
from rcg_lightning.types import Batch

# what a random number is for, so that no two uses share one
_IMAGE, _PAIR, _VIEW, _FIXED, _NEIGHBOUR, _INSTANCE = range(6)


class ImageDataset(Dataset[Batch]):
    """Makes batches; ``needs`` says which keys they get, besides ``index`` and ``view``.

    In training (keys with an epoch) an image is placed at random, from a hash of (seed, epoch, index); where there
    are fixed views (``views``, or ``stores`` with several), one of them is drawn instead, and every key of that row is
    of that view. Otherwise the keys' view is made, without chance; without ``views`` it is the deterministic one.

    Where an ``instance`` is needed, a key in training names the instance, and everything else in its row is of one of
    its neighbours, drawn again; otherwise an image is its own instance.
    """

    def __init__(
        self,
        images: ImageSplit,
        transform: Transform,
        views: Views | None,
        stores: Mapping[str, Store],
        needs: frozenset[str],
        seed: int,
    ) -> None:
        self.images = images
        self.transform = transform
        self.views = views
        self.stores = {name: store for name, store in stores.items() if name in needs}
        self.instances = stores["representation"] if "instance" in needs else None
        self.neighbours = stores.get("neighbours") if "instance" in needs else None
        self.needs = needs
        self.seed = seed

    def __getitem__(self, keys: Keys) -> Batch:
        index, view = self._shown(keys), self._view(keys)
        batch: Batch = {"index": torch.from_numpy(index), "view": torch.from_numpy(view)}
        if "image" in self.needs:
            fixed = self.views is not None or keys.epoch is None
            batch["image"] = self._images(index, *(self._fixed(index, view) if fixed else self._drawn(keys, _IMAGE)))
        if "pair" in self.needs:
            batch["pair"] = self._images(index, *self._drawn(keys, _PAIR))
        if "label" in self.needs and self.images.labels is not None:
            batch["label"] = torch.from_numpy(self.images.labels[index])
        for name, store in self.stores.items():
            batch[name] = _tensor(store.read(name, index, view))  # type: ignore[literal-required]
        if self.instances is not None:
            batch["instance"] = _tensor(self.instances.read("representation", keys.index, self._told(keys)))
        return batch

    def _shown(self, keys: Keys) -> np.ndarray:
        """Return (B,) int64, the image of each row."""
        if self.neighbours is None or keys.epoch is None:
            return keys.index
        found = self.neighbours.read("neighbours", keys.index)  # (B, k)
        u = numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _NEIGHBOUR)
        return np.take_along_axis(found, (u * found.shape[1]).astype(np.int64), 1)[:, 0].astype(np.int64)

    def _told(self, keys: Keys) -> int | np.ndarray:
        """Return which view's representation stands for each instance: any in training, so that flips augment it."""
        assert self.instances is not None
        if keys.epoch is None:
            return 0
        u = numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _INSTANCE)[:, 0]
        return (u * self.instances.views).astype(np.int64)

    def _view(self, keys: Keys) -> np.ndarray:
        """Return (B,) int64, the view of each row."""
        if keys.view is not None:
            return keys.view
        count = max([store.views for store in self.stores.values()] or [self.views.count if self.views else 1])
        if keys.epoch is None or count == 1:
            return np.zeros_like(keys.index)
        return (numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _VIEW)[:, 0] * count).astype(np.int64)

    def _drawn(self, keys: Keys, use: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return (B, draws) numbers that place the images and (B,) bool, which are mirrored; None: nothing random."""
        if keys.epoch is None or not self.transform.random:
            return None, None
        u = numpy_rng.uniform(1 + self.transform.draws, self.seed, keys.epoch, keys.index, use)
        mirror = u[:, 0] < 0.5 if self.transform.flip else None
        return (u[:, 1:] if self.transform.draws else None), mirror

    def _fixed(self, index: np.ndarray, view: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the same for fixed views."""
        if self.views is None:
            return None, None
        crop, odd = np.divmod(view, 2 if self.views.flips else 1)
        if not self.views.crops:
            return None, odd == 1
        return numpy_rng.uniform(self.transform.draws, self.views.seed, index, crop, _FIXED), odd == 1

    def _images(self, index: np.ndarray, places: np.ndarray | None, mirror: np.ndarray | None) -> Tensor:
        """Return uint8 (B, C, H, W)."""
        if self.images.array is not None and isinstance(self.transform, AsIs):
            images = self.images.array[index]
            if mirror is not None:
                images[mirror] = images[mirror][..., ::-1]
            return torch.from_numpy(images)
        placed = [
            self.transform(
                self.images.load(int(i)),
                None if places is None else places[row],
                mirror is not None and bool(mirror[row]),
            )
            for row, i in enumerate(index)
        ]
        return torch.stack(placed)


def _tensor(values: np.ndarray) -> Tensor:
    """Stored numbers as what batches carry: float32 or int64."""
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False))

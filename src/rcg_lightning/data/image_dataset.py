"""Make a batch from its keys: decode and crop images, join labels and stored columns, in a worker of the loader."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rcg_lightning.data import numpy_rng
from rcg_lightning.data.decode import in_threads
from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.data.index_samplers import Keys
from rcg_lightning.data.store import Store
from rcg_lightning.data.transforms import AsIs, Transform, Views
from rcg_lightning.types import Batch

# streams of random numbers: one for each use, so that no number is used twice
_IMAGE, _PAIR, _VIEW, _FIXED, _NEIGHBOUR, _INSTANCE = range(6)


class ImageDataset(Dataset[Batch]):
    """A data set whose items are batches with ``index``, ``view`` and the keys in ``needs``.

    In training (keys with an epoch) the transform is random, by a hash of (seed, epoch, index). Where there are fixed
    views (``views``, or ``stores`` with several), one of them is chosen at random instead, and all values of that
    example belong to that view. Outside training the view of the keys is used; without ``views`` it is the
    deterministic one.

    Where ``instance`` is needed, a key in training is the index of the instance. All other values of the example
    belong to one of the instance's neighbours, chosen at random each time. Outside training an image is its own
    instance.
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
        index, view = self._image_index(keys), self._view(keys)
        batch: Batch = {"index": torch.from_numpy(index), "view": torch.from_numpy(view)}
        if "image" in self.needs:
            fixed = self.views is not None or keys.epoch is None
            crops = self._fixed_crops(index, view) if fixed else self._random_crops(keys, _IMAGE)
            batch["image"] = self._images(index, *crops)
        if "pair" in self.needs:
            batch["pair"] = self._images(index, *self._random_crops(keys, _PAIR))
        if "label" in self.needs and self.images.labels is not None:
            batch["label"] = torch.from_numpy(self.images.labels[index])
        for name, store in self.stores.items():
            batch[name] = _tensor(store.read(name, index, view))  # type: ignore[literal-required]
        if self.instances is not None:
            batch["instance"] = _tensor(self.instances.read("representation", keys.index, self._instance_view(keys)))
        return batch

    def _image_index(self, keys: Keys) -> np.ndarray:
        """Return the index of each example's image, (B,) int64."""
        if self.neighbours is None or keys.epoch is None:
            return keys.index
        found = self.neighbours.read("neighbours", keys.index)  # (B, k)
        u = numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _NEIGHBOUR)
        return np.take_along_axis(found, (u * found.shape[1]).astype(np.int64), 1)[:, 0].astype(np.int64)

    def _instance_view(self, keys: Keys) -> int | np.ndarray:
        """Return the view whose representation is the instance: a random one in training, so that flips augment it."""
        assert self.instances is not None
        if keys.epoch is None:
            return 0
        u = numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _INSTANCE)[:, 0]
        return (u * self.instances.views).astype(np.int64)

    def _view(self, keys: Keys) -> np.ndarray:
        """Return the view of each example, (B,) int64."""
        if keys.view is not None:
            return keys.view
        count = max([store.views for store in self.stores.values()] or [self.views.count if self.views else 1])
        if keys.epoch is None or count == 1:
            return np.zeros_like(keys.index)
        return (numpy_rng.uniform(1, self.seed, keys.epoch, keys.index, _VIEW)[:, 0] * count).astype(np.int64)

    def _random_crops(self, keys: Keys, stream: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return random numbers (B, n_random) for the crops and which images are mirrored, (B,) bool.

        Either is None where it is not random.
        """
        if keys.epoch is None or not self.transform.random:
            return None, None
        u = numpy_rng.uniform(1 + self.transform.n_random, self.seed, keys.epoch, keys.index, stream)
        mirror = u[:, 0] < 0.5 if self.transform.flip else None
        return (u[:, 1:] if self.transform.n_random else None), mirror

    def _fixed_crops(self, index: np.ndarray, view: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the same for fixed views."""
        if self.views is None:
            return None, None
        crop, odd = np.divmod(view, 2 if self.views.flips else 1)
        if not self.views.crops:
            return None, odd == 1
        return numpy_rng.uniform(self.transform.n_random, self.views.seed, index, crop, _FIXED), odd == 1

    def _images(self, index: np.ndarray, u: np.ndarray | None, mirror: np.ndarray | None) -> Tensor:
        """Return the transformed images, uint8 (B, C, H, W)."""
        if self.images.array is not None and isinstance(self.transform, AsIs):
            images = self.images.array[index]
            if mirror is not None:
                images[mirror] = images[mirror][..., ::-1]
            return torch.from_numpy(images)

        def transformed(example: int) -> Tensor:
            return self.transform(
                self.images.load(int(index[example])),
                None if u is None else u[example],
                mirror is not None and bool(mirror[example]),
            )

        examples = range(len(index))
        in_files = self.images.array is None
        return torch.stack(in_threads(transformed, examples) if in_files else [*map(transformed, examples)])


def _tensor(values: np.ndarray) -> Tensor:
    """Convert stored values to the types of a batch: float32 or int64."""
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False))

"""Open the stores that are joined to images, and check that they belong to the images and to each other."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.data.store import Store
from rcg_lightning.types import require

IMAGE_KEYS = frozenset({"image", "pair", "index", "view"})  # keys of a batch that need no store


def open_columns(paths: Iterable[Path], fingerprint: str, split: str) -> dict[str, Store]:
    """Open stores and return the store of each column.

    Raises:
        UserError: a store is incomplete or was made from other images, or two stores do not fit together.
    """
    found: dict[str, Store] = {}
    for path in paths:
        store = Store.open(path)
        store.check(dataset=fingerprint, split=split)
        for first in found.values():
            store.check(transform=first.identity.get("transform"))
        for name in store.columns:
            require(name not in found, f"two stores have a column {name!r}, one of them {path}: give only one")
            found[name] = store
    if {"neighbours", "representation"} <= found.keys():
        _check_neighbours(found["neighbours"], found["representation"])
    return found


def available_keys(images: ImageSplit, columns: Mapping[str, Store], split: str) -> frozenset[str]:
    """Return the keys that batches of a split can have.

    In training an instance needs neighbours, which provide its images; an evaluation image is its own instance.
    """
    labels = {"label"} if images.labels is not None else set()
    instances = columns.keys() >= ({"representation", "neighbours"} if split == "train" else {"representation"})
    return IMAGE_KEYS | labels | columns.keys() | ({"instance"} if instances else set())


def _check_neighbours(neighbours: Store, representations: Store) -> None:
    """Raise a UserError where the neighbours were found among other representations."""
    given = representations.identity.get("representation")
    used = neighbours.columns["neighbours"].get("representation")
    require(
        used == given,
        f"{neighbours.path} has neighbours by representations {used}, but the store of representations has {given}: "
        "run rcg neighbours on that store",
    )

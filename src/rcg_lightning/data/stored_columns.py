"""The stored columns that are joined to images: opened, and checked to belong to them and to each other."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.data.store import Store
from rcg_lightning.types import require

IMAGE_KEYS = frozenset({"image", "pair", "index", "view"})  # keys of a batch that need no store


def open_columns(paths: Iterable[Path], fingerprint: str, split: str) -> dict[str, Store]:
    """Open stores and return the one of each column.

    Raises:
        UserError: a store is incomplete or was made from other images, or two do not fit together.
    """
    found: dict[str, Store] = {}
    for path in paths:
        store = Store.open(path)
        store.check(dataset=fingerprint, split=split)
        for first in found.values():
            store.check(transform=first.identity.get("transform"))
        for name in store.columns:
            require(name not in found, f"two stores have a column {name!r}: {path} and another; give one")
            found[name] = store
    if {"neighbours", "representation"} <= found.keys():
        _check_neighbours(found["neighbours"], found["representation"])
    return found


def available(images: ImageSplit, columns: Mapping[str, Store], split: str) -> frozenset[str]:
    """Return the keys that batches of a split can have.

    In training an instance has several images, so it takes neighbours; an evaluation image is its own.
    """
    labels = {"label"} if images.labels is not None else set()
    instances = columns.keys() >= ({"representation", "neighbours"} if split == "train" else {"representation"})
    return IMAGE_KEYS | labels | columns.keys() | ({"instance"} if instances else set())


def _check_neighbours(neighbours: Store, representations: Store) -> None:
    """Raise a UserError where neighbours were found among other representations than those that are joined."""
    mine = representations.identity.get("representation")
    theirs = neighbours.columns["neighbours"].get("representation")
    require(
        theirs == mine,
        f"{neighbours.path} has neighbours by representations {theirs}, and the representations are {mine}: run rcg "
        "neighbours on the store that you give",
    )

"""The stored columns that are joined to images: open them, and check that they fit and that none is missing."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rcg_lightning.data.image_split import ImageSplit
from rcg_lightning.data.store import Store
from rcg_lightning.errors import UserError
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


def reject_missing(keys: frozenset[str], split: str, source: str) -> None:
    """Raise a UserError where ``keys`` of a split are needed but missing; ``source`` is the name of its class."""
    if "label" in keys:
        raise UserError(
            f"labels are needed, but {source} has none: use a source with classes, or a condition without labels"
        )
    if "tag" in keys:
        raise UserError("tags are needed: set data.class_path to TagDataModule, with a source of tagged images")
    if "instance" in keys and split == "train":
        raise UserError(
            "instances need representations and neighbours of the training images: run rcg extract and "
            "rcg neighbours, and give both stores as data.stores"
        )
    if keys:
        option = "stores" if split == "train" else "eval_stores"
        raise UserError(
            f"{sorted(keys)} of the {split} images is needed, but no store has it: "
            f"make one with rcg extract and give it as data.{option}"
        )


def _check_neighbours(neighbours: Store, representations: Store) -> None:
    """Raise a UserError where the neighbours were found among other representations."""
    given = representations.identity.get("representation")
    used = neighbours.columns["neighbours"].get("representation")
    require(
        used == given,
        f"{neighbours.path} has neighbours by representations {used}, but the store of representations has {given}: "
        "run rcg neighbours on that store",
    )

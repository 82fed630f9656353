"""Which folders of a data set are its splits, by their names and those of their neighbours."""

import logging
import os
from pathlib import Path

from rcg_lightning.data.folder_index import holds_files

log = logging.getLogger(__name__)
_TRAIN = ("train", "training")
_EVALUATION = ("val", "valid", "validation", "eval", "evaluation", "dev", "test", "testing")  # the first one is used


def split_folders(root: Path, suffixes: tuple[str, ...]) -> tuple[Path, Path | None]:
    """Return the folders of the training and evaluation images of ``root``: ``root`` and None where it has no splits.

    Names such as ``train`` and ``test`` are splits only where every neighbour agrees: each folder that holds images has
    such a name, and ``root`` itself holds no image. Else they are ordinary folders, of a class called "test" perhaps.

    Args:
        suffixes: of the files that hold images.
    """
    with os.scandir(root) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = {entry.name: root / entry.name for entry in visible if entry.is_dir()}
    by_split = {name.lower(): folder for name, folder in folders.items() if name.lower() in _TRAIN + _EVALUATION}
    train = next((by_split[name] for name in _TRAIN if name in by_split), None)
    if train is None:
        return root, None
    others = (
        name for name, folder in folders.items() if name.lower() not in by_split and holds_files(folder, suffixes)
    )
    loose = (entry.name for entry in visible if entry.is_file() and entry.name.lower().endswith(suffixes))
    neighbour = next(loose, None) or next(others, None)
    if neighbour is not None:
        names = ", ".join(folder.name for folder in by_split.values())
        log.warning("%s holds %s next to %s, so none of them is taken for a split", root, neighbour, names)
        return root, None
    return train, next((by_split[name] for name in _EVALUATION if name in by_split), None)

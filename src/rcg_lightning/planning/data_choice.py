"""From the words FOLDER_OR_DATA_SET to a source of images."""

import difflib
import inspect
from pathlib import Path

from rcg_lightning.data import datasets
from rcg_lightning.data.folder_index import index_folder
from rcg_lightning.data.image_folders import FlatFolder, FolderSource, ImageFolder, TarShards
from rcg_lightning.data.image_split import Source
from rcg_lightning.data.tar_index import tar_names
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

CONDITIONS = ("representation", "class", "joint", "none")
ROOT = Path("data")  # where torchvision's data sets lie or are downloaded to


def named_sources() -> dict[str, type[Source]]:
    """Return the data sets that have a name, by their name in lower case."""
    kinds = (kind for _, kind in inspect.getmembers(datasets, inspect.isclass))
    named = (kind for kind in kinds if issubclass(kind, Source) and kind.__module__ == datasets.__name__)
    return {kind.__name__.lower(): kind for kind in named if not inspect.isabstract(kind) and _is_whole(kind)}


def _is_whole(kind: type[Source]) -> bool:
    return kind is datasets.Digits or hasattr(kind, "layout")


def choose_source(data: str, labels: bool) -> Source:
    """Return the source of a folder's images, or a data set by name.

    Args:
        data: a folder, or a name such as digits.
        labels: read the folders in it as classes.

    Raises:
        UserError: there is no such folder and no such data set.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        if tar_names(folder):
            return TarShards(folder, orient=True)
        return ImageFolder(folder, orient=True) if labels else FlatFolder(folder, orient=True)
    require(not folder.exists(), f"{data} is a file: give the folder that holds the images")
    known = named_sources()
    kind = known.get(data.lower())
    if kind is not None:
        return kind() if kind is datasets.Digits else kind(root=ROOT)  # type: ignore[call-arg]
    near = difflib.get_close_matches(data.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder, or a data set: {', '.join(sorted(known))}"
    raise UserError(f"no folder {data}: {hint}")


def check_apart(source: Source, out: Path) -> None:
    """Raise UserError where the run's folder lies in the images or the images in it: a run would train on its own."""
    if not isinstance(source, FolderSource):
        return
    images, run = source.root.resolve(), out.resolve()
    if run.is_relative_to(images):
        raise UserError(f"the run's folder {out} lies in the folder of the images {source.root}: give another --out")
    if images.is_relative_to(run):
        raise UserError(f"the images {source.root} lie in the run's folder {out}: give another --out")


def check_condition(condition: str, source: Source) -> None:
    """Raise UserError where labels are asked for and there are none."""
    if condition not in ("class", "joint"):
        return
    flat = isinstance(source, ImageFolder) and not index_folder(source.root).classes
    if flat or source.train().labels is None:
        where = source.root if isinstance(source, FolderSource) else type(source).__name__
        raise UserError(
            f"--condition {condition} needs labels and {where} has none: put the images of each class into a folder of "
            "its own, or leave --condition out"
        )

"""The folder of a training run: its checkpoints, and the files of an earlier run in it; and runs of several steps.

Nothing here imports torch.
"""

import logging
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rcg_lightning.artifacts import set_aside
from rcg_lightning.errors import UserError
from rcg_lightning.integrity import check_torch_file, unless_verified

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the checkpoint before the last, until training ends
UNDECAYED = "undecayed.ckpt"  # before the learning rate's final decay: a longer run continues from it
SHORTER = "shorter.ckpt"  # the end of a run that was made longer
DIVERGED = "diverged.ckpt"  # finite weights of a run that has diverged
PLAN = "plan.json"  # index of a run of several steps that `rcg train` planned
_WRITTEN = (
    LAST,
    PREVIOUS,
    UNDECAYED,
    SHORTER,
    DIVERGED,
    "best.ckpt",
    "step=*.ckpt",
    "config.yaml",
    "hparams.yaml",
    "grids",
    "events.out.tfevents.*",
)


def keep_as(path: Path, name: str) -> None:
    """Give the checkpoint at ``path``, which is about to be replaced, another name too."""
    draft, kept = path.with_name(f".{name}.draft"), path.with_name(name)
    draft.unlink(missing_ok=True)
    try:
        os.link(path, draft)
    except FileNotFoundError:
        return  # the first checkpoint
    except OSError:  # a file system without hard links
        os.replace(path, draft)
    os.replace(draft, kept)


def begin_extension(folder: Path) -> None:
    """Make the checkpoint before the decay the last one, so that a longer run continues from it.

    The end of the shorter run becomes ``shorter.ckpt``. A run that has not decayed yet continues from where it is.
    """
    if (folder / UNDECAYED).is_file() and damage(folder / UNDECAYED) is None:
        keep_as(folder / LAST, SHORTER)
        os.replace(folder / UNDECAYED, folder / LAST)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run to continue from; None if there is none.

    A damaged ``last.ckpt`` gets another name, with a warning, and ``previous.ckpt`` takes its place.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    faults = {path: damage(path) for path in paths[:1]}
    faults |= {path: damage(path) for path in paths[1:] if any(faults.values())}
    whole = next((path for path, fault in faults.items() if fault is None), None)
    for path, fault in faults.items():
        if fault is not None:
            instead = "training begins again" if whole is None else f"training continues from {whole.name}"
            log.warning("%s; %s", fault, instead)
            _rename_damaged(path)
    return whole


def damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint; None if it is whole."""
    if not zipfile.is_zipfile(path):
        return f"{path} is damaged or incomplete"
    try:
        unless_verified([path], lambda: check_torch_file(path), "torch")
    except UserError as error:
        return str(error).partition(":")[0]
    return None


def _rename_damaged(path: Path) -> None:
    with suppress(FileNotFoundError):  # another process of this run was first
        set_aside(path, f"{path.stem}.damaged")


def written_files(folder: Path) -> list[Path]:
    """Return what training runs have written to ``folder``: checkpoints, config, logs and exported networks."""
    found = [path for pattern in _WRITTEN for path in sorted(folder.glob(pattern))]
    return found + [path.parent for path in sorted(folder.glob("*/network.json"))]


def set_run_aside(folder: Path, files: Iterable[Path]) -> None:
    """Move the files of an earlier run in ``folder`` to a new folder ``version_0``, ``version_1``, … in it.

    Logs alone, of a run that failed before it began, stay.
    """
    files = [path for path in files if path.exists()]
    if all("tfevents" in path.name for path in files):
        return
    number = 0
    while (version := folder / f"version_{number}").exists():
        number += 1
    version.mkdir()
    for path in files:
        path.rename(version / path.name)
    log.warning("%s held another run, which is now in %s", folder, version.name)


def step_parents(path: Path, every_seed: bool = False) -> list[Path]:
    """Return the folders in which the steps of a run lie: that of its first seed, if it has seeds, then the shared one.

    Args:
        path: folder of the run, of one of its seeds, or of one of its training steps.
        every_seed: return those of all seeds, then the shared one.
    """
    if (path / LAST).is_file():
        path = path.parent
    if re.fullmatch(r"seed\d+", path.name):
        return [path, path.parent]
    seeds = sorted(path.glob("seed*"), key=lambda seed: (len(seed.name), seed.name))
    trained = [seed for seed in seeds if any(seed.glob(f"*/{LAST}"))]
    return [*(trained if every_seed else trained[:1]), path]


def files_of_steps(parents: Sequence[Path], pattern: str) -> Iterator[Path]:
    """Yield the files of a run's steps, without those of earlier settings, which `rcg pipeline` sets aside."""
    paths = (path for folder in parents for path in sorted(folder.glob(pattern)))
    return (path for path in paths if not any(".until-" in part for part in path.parts))

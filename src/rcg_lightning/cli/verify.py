"""`rcg verify`: which files below a path are damaged."""

from pathlib import Path

from tqdm import tqdm

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.types import require
from rcg_lightning.verification import findings


def verify(path: Path) -> None:
    """Read every file at or below a path and compare it with its checksum: one line for each that is damaged.

    Stores, checkpoints, networks, bundles, references, samples, and folders that hold them, such as those of a run or
    of a pipeline. The exit code is 0 if all files are whole, 2 if one is not. Nothing is changed.

    Args:
        path: a file or a folder.
    """
    whole: dict[Path, bool] = {}  # whether a file has a checksum
    bad: set[Path] = set()
    for finding in tqdm(findings(path), "verifying", unit=" files", delay=3, leave=False):
        if finding.fault is None:
            whole[finding.path] = finding.checksum
        elif finding.path not in bad:
            bad.add(finding.path)
            echo(finding.fault)
    count = len(whole.keys() | bad)
    require(count > 0, f"{path} holds nothing to verify: give a store, checkpoint, network, bundle or run folder")
    require(not bad, f"{len(bad)} of {count} files of {path} are damaged")
    plain = list(whole.values()).count(False)
    note = f"; {plain} of them have no checksum, of these the format was read" if plain else ""
    echo(f"{path}: {count} files are whole{note}")


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg verify`; the path needs no --path before it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--path", *argv]
    examples = ["rcg verify runs/digits", "rcg verify runs/rdm/last.ckpt", "rcg verify runs/store"]
    call(verify, name, argv, examples, names=False)

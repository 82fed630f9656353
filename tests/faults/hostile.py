"""Hostile and nonsensical input: rejected in one line, at once, without running or writing anything of a stranger."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .cases import Case, expect, expect_one_line
from .process import Ended, start
from .world import World

# of CPU time and memory above those of a good input; 1 s on an idle machine, a busy one counts several times as much
SECONDS, BYTES = 3.0, 200 * 2**20
EXPECTED = "rc 2, one line that names file or option, 3 s, 200 MB, nothing run, nothing written elsewhere"
BASELINES = {  # command -> the undisturbed run that it is compared with
    "sample": "samples",
    "fit": "generator",
    "extract": "store",
    "evaluate": "metrics",
    "cluster": "clusters",
    "bundle": "bundle",
    "pipeline": "clusters",
    "principal": "store",
    "compare": "metrics",
}
HANGS = 30  # seconds
MODULE = "evil_module"  # importable where the command runs; its import leaves a mark
MARK, ESCAPED = "touched", "escaped"  # files that a stranger's code, or a path that leaves its folder, would write


@dataclass(frozen=True)
class Given:
    """One input.

    Attributes:
        kind: a row of the table.
        name: within its kind.
        make: writes the input into an empty folder, {at} in the command.
        command: that reads it.
        mentions: words of which the message must hold one.
        codes: further exit codes that are right.
    """

    kind: str
    name: str
    make: Callable[[World, Path], object]
    command: str
    mentions: tuple[str, ...]
    codes: tuple[int, ...] = ()


def inputs() -> Iterator[Given]:
    """Yield every input."""
    from .given import arrays, checkpoints, images, networks, options, stores, texts

    for part in (checkpoints, networks, stores, images, arrays, texts, options):
        yield from part.inputs()


def hostile(world: World, seed: int) -> list[Case]:
    """Cases of every input."""
    needs = tuple({*BASELINES.values(), "conditioned", "rdm"})
    return [
        Case(f"hostile {given.kind}", given.name, EXPECTED, partial(_give, world, given), needs) for given in inputs()
    ]


def _give(world: World, given: Given, folder: Path) -> None:
    at, out = folder / "given", folder / "out"
    at.mkdir()
    os.environ["RCG_FAULTS_MARK"] = str(folder / MARK)
    given.make(world, at)
    line = f"import os, pathlib; pathlib.Path({str(folder / MARK)!r}).touch()\nclass Evil:\n    pass\n"
    (folder / "modules").mkdir()
    (folder / "modules" / f"{MODULE}.py").write_text(line)
    words = world.filled(given.command.replace("{at}", str(at)), out)
    # a config on the command line is the user's own and may name installed classes; files made by others may not
    importable = given.kind != "config"
    running = start(words, folder, (lambda: sys.path.insert(0, str(folder / "modules"))) if importable else None)
    ended = running.wait(HANGS)
    expect(not (folder / MARK).exists(), "code of the input was run")
    escaped = [path for place in (at.parent, folder.parent) for path in place.glob(f"{ESCAPED}*")]
    escaped += Path("/tmp").glob(f"rcg-{ESCAPED}*")
    expect(not escaped, f"written outside the folder: {escaped}")
    expect(ended.code != -9, f"it did not end within {HANGS} s")
    _within_limits(ended, world, words[0])
    if ended.code not in given.codes:
        expect_one_line(ended, given.mentions)


def _within_limits(ended: Ended, world: World, command: str) -> None:
    good = world.runs[BASELINES.get(command, "samples")]
    spent, taken = ended.cpu - good.begun, ended.peak - good.ended.peak
    expect(spent <= SECONDS, f"rc {ended.code} after {spent:.1f} s of CPU time more than a good input takes to begin")
    expect(taken <= BYTES, f"rc {ended.code}, {taken / 2**20:.0f} MB more memory than a good input")

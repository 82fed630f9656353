"""kill -9 at random moments of every stage, and inside the writing of checkpoints; then the run continues."""

import os
import random
import re
import signal
from functools import partial
from pathlib import Path

from .cases import Case, Deviation, expect, expect_code
from .files import at_rename, at_write
from .process import rcg, start
from .results import differences, results, torn_files
from .world import STAGES, World

RUNS = (*STAGES, "store", "tokens", "samples", "scored", "metrics", "pipeline")
KILLS, WRITES = 100, 20
SAME = "folder whole, the continued run ends with the same bits"


def kills(world: World, seed: int) -> list[Case]:
    """Cases of kills at random moments: several in every stage, some runs killed twice."""
    cases, count = [], 0
    while count < KILLS:
        name = RUNS[len(cases) % len(RUNS)]
        title = f"{name} {len(cases) // len(RUNS)}"
        draw = random.Random(f"{seed} kill {title}")
        times = min(1 + (draw.random() < 0.3), KILLS - count)
        moments = [draw.random() for _ in range(times)]
        cases.append(Case("kill -9", title, SAME, partial(_kill, world, name, moments), (name,)))
        count += times
    return cases


def _kill(world: World, name: str, moments: list[float], folder: Path) -> None:
    """Kill a run at fractions of its work, one after another, and continue it."""
    known, out = world.runs[name], folder / "run"
    for number, moment in enumerate(moments):
        cpu = 0.8 * known.begun + moment * (known.ended.cpu - 0.8 * known.begun)
        running = start(world.argv(name, out, resumed=number > 0), folder)
        if not running.signal_at(cpu, signal.SIGKILL):
            expect_code(running.wait(), 0, "the run, which was faster than the kill,")
            break
        running.wait()
        expect(not torn_files(out), f"half files under final names: {torn_files(out)}")
    continues(world, name, folder)


def continues(world: World, name: str, folder: Path) -> None:
    """Check that a run whose folder is ``folder``/run is whole, and continues to the results of the undisturbed run."""
    out = folder / "run"
    expect(not torn_files(out), f"half files under final names: {torn_files(out)}")
    had = (out / "last.ckpt").exists()
    ended = rcg(world.argv(name, out, resumed=True), folder)
    expect_code(ended, 0, f"the continued run ({'from its checkpoint' if had else 'from its start'})")
    found, expected = results(out), world.runs[name].results
    aside = [name for name in found if re.search(r"\.until-|(^|/)last-\d", name)]
    wrong = differences(found, expected) + [f"{name} was put aside" for name in aside]
    expect(not wrong, f"{len(wrong)} results are not those of the undisturbed run: {wrong[:4]}")


def writes(world: World, seed: int) -> list[Case]:
    """Cases of kills inside the writing of the n-th checkpoint: at a byte, before its rename, and after it."""
    cases = []
    for number in range(WRITES):
        name = STAGES[number % len(STAGES)]
        draw = random.Random(f"{seed} write {number}")
        nth, point = draw.randrange(1, 4), ("byte", "byte", "before rename", "after rename")[number % 4]
        title = f"{name} {number}, checkpoint {nth}, {point}"
        byte = draw.random()
        check = partial(_kill_in_write, world, name, nth, point, byte)
        cases.append(Case("kill -9 in a checkpoint", title, SAME, check, (name,)))
    return cases


def _kill_in_write(world: World, name: str, nth: int, point: str, byte: float, folder: Path) -> None:
    size = (world.path(name) / "last.ckpt").stat().st_size
    out, pattern = folder / "run", r"last\.ckpt"
    if point == "byte":
        before = partial(at_write, pattern, int(byte * size), _die, nth)
    else:
        before = partial(at_rename, pattern, _die, nth, after=point == "after rename")
    ended = rcg(world.argv(name, out), folder, before)
    if ended.code != -signal.SIGKILL:
        raise Deviation(f"the process wrote no checkpoint {nth} where it should die: rc {ended.code}")
    expect((out / "last.ckpt").exists() == (nth > 1 or point == "after rename"), "an earlier checkpoint is gone")
    continues(world, name, folder)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

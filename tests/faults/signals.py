"""SIGTERM and SIGINT at random moments: the run says what stays, and continues to the same results."""

import random
import re
import signal
from functools import partial
from pathlib import Path

from .cases import Case, expect, expect_code
from .kills import continues
from .process import start
from .results import torn_files
from .world import World

RUNS = ("encoder", "gan", "tokenizer", "rdm", "dit", "mage", "store", "samples", "scored", "pipeline")
EXPECTED = {
    signal.SIGTERM: (143, "rc 143, one line; the continued run ends with the same bits"),
    signal.SIGINT: (130, "rc 130, one line; the continued run ends with the same bits"),
}


def signals(world: World, seed: int) -> list[Case]:
    """Cases of one signal at a random moment of a run, after it has begun to write."""
    cases = []
    for number in EXPECTED:
        for name in RUNS:
            moment = random.Random(f"{seed} {number.name} {name}").uniform(0, 0.8)
            check = partial(_interrupt, world, name, number, moment)
            cases.append(Case(number.name, name, EXPECTED[number][1], check, (name,)))
    return cases


def _interrupt(world: World, name: str, number: signal.Signals, moment: float, folder: Path) -> None:
    known, out = world.runs[name], folder / "run"
    running = start(world.argv(name, out), folder)
    arrived = running.signal_at(known.begun + moment * (known.ended.cpu - known.begun), number)
    ended = running.wait()
    expect(arrived or ended.code == 0, f"it ended by itself with rc {ended.code}")
    if arrived and ended.code != 0:  # a signal in a run's last moments finds it finished
        expect_code(ended, EXPECTED[number][0], f"the run that got {number.name}")
        lines = re.findall(r"\brcg [\w-]+: .*", ended.output)
        expect(len(lines) == 1, f"{len(lines)} lines of `rcg` instead of one: {lines}")
        expect("Traceback" not in ended.output, f"a traceback: {ended.output[-300:]}")
    expect(not torn_files(out), f"half files under final names: {torn_files(out)}")
    continues(world, name, folder)

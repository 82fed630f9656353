"""Inject faults into the commands and report every deviation: `python -m tests.faults --help`."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .cases import Case, as_plain, run_cases, share_of
from .process import preload
from .report import table


def all_cases(world, seed: int) -> list[Case]:
    """Return every case, in the order of the table."""
    from . import damage, disk, divergence, hostile, kills, ranks, signals

    kinds = (kills.kills, kills.writes, signals.signals, ranks.ranks, disk.disks, damage.states, damage.flips)
    kinds += (divergence.divergences, hostile.hostile)
    return [case for kind in kinds for case in kind(world, seed)]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the cases to run, the same ones each time")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, positions and choices")
    parser.add_argument("--only", action="append", help="run the cases whose title contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", type=Path, default=None, help="write every outcome to this file")
    parser.add_argument("--markdown", type=Path, default=None, help="write the table to this file")
    parser.add_argument("--folder", type=Path, default=None, help="work here, and leave it; else a temporary folder")
    parser.add_argument("--list", action="store_true", help="list the cases and run none")
    return parser.parse_args()


def main() -> int:
    given, start = options(), time.monotonic()
    if not given.list:
        preload()
    from .world import World

    folder = (given.folder or Path(tempfile.mkdtemp(prefix="rcg-faults-"))).resolve()
    os.environ["RCG_CACHE"] = str(folder / "cache")
    world = World(folder / "world")
    cases = all_cases(world, given.seed)
    if given.only:
        cases = [case for case in cases if any(text in case.title for text in given.only)]
    cases = share_of(cases, given.share) if given.share < 1 else cases
    if given.list:
        print("\n".join(case.title for case in cases))
        return 0
    shutil.rmtree(world.folder, ignore_errors=True)
    world.run({name for case in cases for name in case.needs})
    say(f"{len(world.runs)} undisturbed runs in {time.monotonic() - start:.0f} s; {len(cases)} cases")
    outcomes = []
    for outcome in run_cases(cases, folder / "cases", given.jobs):
        outcomes.append(outcome)
        if outcome.seen:
            say(f"{outcome.kind}/{outcome.name}: {outcome.seen}")
    order = {case.title: number for number, case in enumerate(cases)}
    outcomes.sort(key=lambda outcome: order[f"{outcome.kind}/{outcome.name}"])
    text = table(outcomes, f"python -m tests.faults --seed {given.seed}")
    print(text, flush=True)
    say(f"{time.monotonic() - start:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(as_plain(outcomes), indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(text + "\n")
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(outcome.seen for outcome in outcomes))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""A disk that fills up while a chosen file is written; then there is room again and the run continues."""

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .cases import Case, expect, expect_one_line
from .files import at_rename, at_write, full_disk
from .kills import continues
from .process import rcg
from .results import torn_files
from .world import World

# (undisturbed run, pattern of the file, which one of several)
WRITES = (
    ("encoder", r"last\.ckpt", 2),
    ("gan", r"last\.ckpt", 1),
    ("rdm", r"config\.yaml", 1),
    ("generator", r"tfevents[^/]*$", 1),
    ("encoder", r"weights\.safetensors", 1),
    ("tokenizer", r"network\.json", 1),
    ("store", r"\.representation\.npy", 3),
    ("tokens", r"/\.?0+3\.json", 1),
    ("store", r"manifest\.json", 1),
    ("samples", r"\.image\.npy", 2),
    ("samples", r"samples\.npz", 1),
    ("samples", r"grid\.png", 1),
    ("scored", r"metrics\.json", 1),
    ("metrics", r"reference-.*\.safetensors", 1),
    ("bundle", r"stage\.json", 1),
    ("pipeline", r"\.rdm\.json", 1),
    ("pipeline", r"rows\.json", 1),
    ("pipeline", r"results\.json", 1),
    ("pipeline", r"store/.*\.npy", 1),
)
RENAMES = (("mage", r"last\.ckpt"), ("latents", r"\.latent\.npy"))
EXPECTED = "rc 2, one line, nothing good lost; with room again the same bits"


def disks(world: World, seed: int) -> list[Case]:
    """Cases of full disks: at a random byte of a file, or at its rename."""
    cases = []
    for name, pattern, nth in WRITES:
        byte = int(2 ** random.Random(f"{seed} disk {name} {pattern}").uniform(0, 8))
        cases.append(_case(world, name, pattern, partial(at_write, pattern, byte, full_disk, nth)))
    for name, pattern in RENAMES:
        cases.append(_case(world, name, f"rename to {pattern}", partial(at_rename, pattern, full_disk)))
    return cases


def _case(world: World, name: str, pattern: str, fault: Callable[[], None]) -> Case:
    title = f"{name} " + re.sub(r"[^\w. ]", "", pattern)
    return Case("disk full", title, EXPECTED, partial(_fill, world, name, fault), (name,))


def _fill(world: World, name: str, fault: Callable[[], None], folder: Path) -> None:
    ended = rcg(world.argv(name, folder / "run"), folder, fault)
    if ended.code != 0:  # a cache or a log may be left out: then the results must be right, which is checked below
        expect_one_line(ended)
        expect(not torn_files(folder / "run"), f"half files under final names: {torn_files(folder / 'run')}")
    continues(world, name, folder)

"""Torn, empty and foreign state files, and flipped bytes: healed, rejected, or without any effect on the result."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .cases import Case, expect, expect_code, expect_one_line
from .process import Ended, rcg
from .results import differences, results
from .world import World

HEALED = "rc 0, no traceback, the results of the undisturbed run"
FOUND = "rc 2 and one line that names the file, or the result of the undamaged file"
VERIFIED = "rc 2 and one line that names the file"
STATE = ("classifier", "store", "rdm", "samples")  # steps whose records are damaged
TABLE = ("table.json", "results.json", "results.md")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "foreign": lambda content: b'{"answer": [42]}',
    "a list": lambda content: b"[1, 2]",
    "zeros": lambda content: bytes(len(content)),  # as some file systems leave a file after a power failure
}

# (undisturbed run, pattern of a file in it, command that reads it)
READ = (
    (
        "encoder",
        "last.ckpt",
        "fit --config {at}/config.yaml --trainer.default_root_dir {out} --ckpt_path {at}/last.ckpt",
    ),
    ("encoder", "encoder/weights.safetensors", "store"),
    ("encoder", "encoder/network.json", "store"),
    ("store", "000002.representation.npy", "rdm"),
    ("store", "manifest.json", "rdm"),
    ("store", "000002.representation.npy", "clusters"),
    ("tokens", "000001.tokens.npy", "mage"),
    ("rdm", "last.ckpt", "samples"),
    ("conditioned", "last.ckpt", "samples"),
    ("samples", "store/000000.image.npy", "metrics"),
    ("samples", "store/manifest.json", "metrics"),
    ("classifier", "classifier/weights.safetensors", "metrics"),
    ("classifier", "classifier/network.json", "metrics"),
    ("bundle", "generator/weights.safetensors", "sample --checkpoint {at} --number 8 --png false --out {out}"),
    ("bundle", "prior/stage.json", "sample --checkpoint {at} --number 8 --png false --out {out}"),
    ("metrics", "reference/*.safetensors", "metrics"),
)


def states(world: World, seed: int) -> list[Case]:
    """Cases of damaged state in the folder of a finished or killed pipeline."""
    files = [f".{name}.json" if name == "classifier" else f"seed0/.{name}.json" for name in STATE] + list(TABLE)
    cases = []
    for file in files:
        for damage in DAMAGES:
            check = partial(_heal, world, file, damage, "")
            cases.append(Case("state file", f"{file} {damage}", HEALED, check, ("pipeline",)))
    for damage in ("torn", "empty", "zeros"):
        check = partial(_heal, world, "seed0/rdm/last.ckpt", damage, "rdm")
        cases.append(Case("state file", f"last.ckpt of an unfinished step {damage}", HEALED, check, ("pipeline",)))
    return cases


def _heal(world: World, file: str, damage: str, unfinished: str, folder: Path) -> None:
    out = folder / "run"
    shutil.copytree(world.path("pipeline"), out)
    path = out / "small" / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if unfinished:
        record = out / "small" / "seed0" / f".{unfinished}.json"
        content = json.loads(record.read_text())
        del content["files"]
        record.write_text(json.dumps({**content, "seconds": None}))
    ended = rcg(world.argv("pipeline", out), folder)
    expect_code(ended, 0, "the pipeline")
    expect("Traceback" not in ended.output, f"a traceback: {ended.output[-300:]}")
    wrong = differences(results(out), world.runs["pipeline"].results)
    expect(not wrong, f"results are not those of the undisturbed run: {wrong[:4]}")


def flips(world: World, seed: int) -> list[Case]:
    """Cases of one flipped byte at a random position, and of a file cut short, in each kind of file."""
    cases = []
    for name, file, reader in READ:
        command = reader.split()[0]
        for kind in ("flipped byte 1", "flipped byte 2", "cut short"):
            check = partial(_damage, world, name, file, reader, kind, seed)
            needs = (name, reader) if reader in world.commands else (name,)
            cases.append(Case(kind.rstrip(" 12"), f"{name} {file}, {command}, {kind}", FOUND, check, needs))
    for name, file in dict.fromkeys((name, file) for name, file, _ in READ):
        for kind in ("flipped byte 1", "flipped byte 2"):
            check = partial(_damage, world, name, file, "verify {at}", kind, seed)
            cases.append(Case("rcg verify", f"{name} {file}, {kind}", VERIFIED, check, (name,)))
    return cases


def _damage(world: World, name: str, file: str, reader: str, kind: str, seed: int, folder: Path) -> None:
    """Read a damaged copy of a run's file by a command: a name of an undisturbed run, or words."""
    at, out = folder / name, folder / "out"
    expected = _read(world, name, reader, world.path(name), folder / "good", folder)
    good = results(folder / "good")
    shutil.copytree(world.path(name), at)
    path = next(at.glob(file))
    content = bytearray(path.read_bytes())
    if kind == "cut short":
        content = content[: len(content) * 2 // 3]
    else:
        draw = random.Random(f"{seed} {name} {file} {kind}")
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    ended = _read(world, name, reader, at, out, folder)
    if ended.code == 0:
        wrong = differences(results(out), good)
        expect(not wrong, f"a wrong result and rc 0 from the damaged {path.name}: {wrong[:4]}")
        expect("verify" not in reader or expected.code != 0, f"{path.name} is damaged and rcg verify finds nothing")
        return
    expect_one_line(ended, [path.name, str(path.parent.name)])


def _read(world: World, name: str, reader: str, at: Path, out: Path, folder: Path) -> Ended:
    """Run the command ``reader`` with the folder of ``name`` at another path."""
    plain = reader not in world.commands
    words = world.filled(reader.replace("{at}", str(at)), out) if plain else world.argv(reader, out)
    known = str(world.path(name))
    return rcg([word.replace(f"{known}/", f"{at}/").replace(f"[{known}]", f"[{at}]") for word in words], folder)

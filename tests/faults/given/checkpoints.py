"""Checkpoints that try to run code, name classes of others, or claim what cannot be."""

import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..hostile import MODULE, Given
from ..world import FIT, SMALL, STEPS, World

FILE = "x.ckpt"
SCORE = "--data.source Digits --extractor ClassifierExtractor --extractor.folder {classifier}/classifier"
READERS = {
    "sample": f"sample --checkpoint {{at}}/{FILE} --number 4 --png false --out {{out}}",
    "prior": f"sample --checkpoint {{conditioned}}/last.ckpt --prior {{at}}/{FILE} --number 4 --out {{out}}",
    "resume": f"fit --config digits/generator {FIT} {STEPS} {SMALL} --trainer.default_root_dir {{out}} "
    f"--ckpt_path {{at}}/{FILE}",
    "init": f"fit --config digits/generator {FIT} {STEPS} {SMALL} --trainer.default_root_dir {{out}} "
    f"--init_from {{at}}/{FILE}",
    "evaluate": f"evaluate --samples {{at}}/{FILE} --number 8 {SCORE}",
}
CLASSES = ("os.system", "subprocess.Popen", f"{MODULE}.Evil", "builtins.eval", "torch.nn.Linear", "antigravity.x")
CLASSES += ("rcg_lightning.none.Nope", "rcg_lightning.stages.diffusion.Nope", "rcg_lightning.cli.main.main")
CLASSES += ("rcg_lightning.config.importlib", "DiffusionStage", "", ".", "a..b")
VALUES = (10**5, 10**9, 10**30, -1, 0, 1.5, math.nan, "x", None, [1], {}, True)


class Evil:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{os.environ['RCG_FAULTS_MARK']}'",)


class Imports:
    """Imports a module when it is unpickled."""

    def __reduce__(self) -> Any:
        return __import__, (MODULE,)


class Executes:
    """Executes Python when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (f"open({os.environ['RCG_FAULTS_MARK']!r}, 'w').close()",)


def good(world: World) -> dict[str, Any]:
    """Return the content of a generator's checkpoint."""
    return torch.load(world.path("generator") / "last.ckpt", weights_only=True)


def changed(*path: str, value: Any) -> Callable[[World, Path], None]:
    """Return a maker of a checkpoint with one entry replaced."""

    def make(world: World, at: Path) -> None:
        content = good(world)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if value is _REMOVED:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        torch.save(content, at / FILE)

    return make


_REMOVED = object()


def raw(content: Callable[[], bytes] | bytes) -> Callable[[World, Path], None]:
    """Return a maker of a file with the given bytes."""
    return lambda world, at: (at / FILE).write_bytes(content if isinstance(content, bytes) else content()) and None


def inputs() -> Iterator[Given]:
    for reader, command in READERS.items():
        for name, make in (_PICKLES | _FILES).items():
            yield Given("checkpoint", f"{name}, {reader}", make, command, (FILE,))
    for path in CLASSES:
        make = changed("stage", "class_path", value=path)
        yield Given("class path", f"stage {path or 'empty'}", make, READERS["sample"], (FILE, path or FILE))
        make = changed("stage", "init_args", "sampler", value={"class_path": path, "init_args": {}})
        yield Given("class path", f"sampler {path or 'empty'}", make, READERS["sample"], (FILE, path or FILE))
    for value in (7, None, ["a"], {"class_path": "os.system"}):
        make = changed("stage", "class_path", value=value)
        yield Given("class path", f"stage {value!r}", make, READERS["sample"], (FILE,))
    for value in VALUES:
        make = changed("stage", "init_args", "denoiser", "init_args", "network", "init_args", "width", value=value)
        yield Given("argument", f"width {value!r}", make, READERS["sample"], (FILE, "width"))
    for name, make in _CONTENTS.items():
        harmless = (0,) if name == "tile 10^12" else ()  # a small request takes a smaller tile
        yield Given("checkpoint", name, make, READERS["sample"], (FILE, "--tile"), harmless)


def _save(content: Any, **settings: Any) -> Callable[[World, Path], None]:
    return lambda world, at: torch.save(content(), at / FILE, **settings)


def _evil_weights(world: World, at: Path) -> None:
    content = good(world)
    content["state_dict"]["evil"] = Evil()
    torch.save(content, at / FILE)


def _bomb(world: World, at: Path) -> None:
    """Half a gigabyte of zeros, compressed to half a megabyte, as the pickle of a torch file."""
    with zipfile.ZipFile(at / FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/version", b"3\n")
        with archive.open("x/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(512):
                entry.write(bytes(2**20))


def _overlapping(world: World, at: Path) -> None:
    content = good(world)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(1).expand(10**6, 10**6)  # four terabytes, stored as four bytes
    torch.save(content, at / FILE)


def _link(target: str) -> Callable[[World, Path], None]:
    return lambda world, at: (at / FILE).symlink_to(target)


_PICKLES: dict[str, Callable[[World, Path], Any]] = {
    "code in a torch file": _save(lambda: {"stage": Evil(), "state_dict": {}}),
    "code in an old torch file": _save(lambda: {"stage": Evil()}, _use_new_zipfile_serialization=False),
    "code in a pickle": raw(lambda: pickle.dumps(Evil())),
    "import in a torch file": _save(lambda: {"stage": Imports()}),
    "exec in a torch file": _save(lambda: [Executes()]),
    "code among the weights": _evil_weights,
    "code in an object array": _save(lambda: np.array([Evil()], dtype=object)),
}
_FILES: dict[str, Callable[[World, Path], Any]] = {
    "empty": raw(b""),
    "text": raw(b"no checkpoint\n"),
    "zeros": raw(bytes(4096)),
    "an array": lambda world, at: np.savez(open(at / FILE, "wb"), a=np.zeros(3)),  # noqa: SIM115
    "half": lambda world, at: (at / FILE).write_bytes((world.path("generator") / "last.ckpt").read_bytes()[:20000]),
}
_CONTENTS: dict[str, Callable[[World, Path], Any]] = {
    "a folder": lambda world, at: (at / FILE).mkdir(),
    "a link to itself": _link(FILE),
    "endless zeros": _link("/dev/zero"),
    "a pipe": lambda world, at: os.mkfifo(at / FILE),
    "zip bomb": _bomb,
    "overlapping weight": _overlapping,
    "no weights": changed("state_dict", value={}),
    "weights missing": changed("state_dict", value=_REMOVED),
    "weights a list": changed("state_dict", value=[1, 2]),
    "weights not tensors": changed("state_dict", value={"denoiser.network.out.weight": "x"}),
    "stage missing": changed("stage", value=_REMOVED),
    "stage a string": changed("stage", value="os.system"),
    "stage a number": changed("stage", value=3),
    "arguments a list": changed("stage", "init_args", value=[1]),
    "unknown argument": changed("stage", "init_args", "evil", value=1),
    "data spec missing": changed("data_spec", value=_REMOVED),
    "data spec a list": changed("data_spec", value=[1]),
    "image of terapixels": changed("data_spec", "image", value=[3, 10**6, 10**6]),
    "image negative": changed("data_spec", "image", value=[1, -8, 8]),
    "image a string": changed("data_spec", "image", value="8x8"),
    "format 99": changed("format", value=99),
    "format a string": changed("format", value="x"),
    "tile 10^12": changed("stage", "init_args", "tile", value=10**12),
    "tile 0": changed("stage", "init_args", "tile", value=0),
    "depth 10^9": changed("stage", "init_args", "denoiser", "init_args", "network", "init_args", "depth", value=10**9),
}

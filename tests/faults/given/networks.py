"""Folders of networks and bundles with hostile descriptions, weights and links."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..hostile import Given
from ..world import DATA, World
from .checkpoints import CLASSES

READ = f"extract --config digits/data {DATA} --encoder TrainedEncoder --encoder.folder {{at}}/encoder --out {{out}}"
SAMPLE = "sample --checkpoint {at}/bundle --number 4 --png false --out {out}"
BUNDLE = "bundle --generator {conditioned}/last.ckpt --prior {rdm}/last.ckpt --encoder {at}/encoder --out {out}"
TEXTS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "torn": b'{"format": 2, "netw',
    "not text": b"\xff\xfe\x00",
    "100,000 brackets": b"[" * 10**5,
    "zeros": bytes(500),
}


def inputs() -> Iterator[Given]:
    for name, content in TEXTS.items():
        yield Given("network", f"network.json {name}", _text(content), READ, ("network.json", "encoder"))
    for path in CLASSES:
        make = _description("network", "class_path", value=path)
        yield Given("class path", f"network {path or 'empty'}", make, READ, ("encoder", path or "encoder"))
        make = _stage(path)
        yield Given("class path", f"bundle {path or 'empty'}", make, SAMPLE, ("stage.json", "bundle", path or "bundle"))
    for name, make in _CHANGES.items():
        yield Given("network", name, make, READ, ("network.json", "weights.safetensors", "encoder"))
    for name, target in {"a file": "/etc/passwd", "a folder": "/etc", "endless zeros": "/dev/zero"}.items():
        make = _with_link(target)
        yield Given("bundle", f"link to {name}", make, BUNDLE, ("encoder", "extra"), (0,))  # it may be left out


def _copy(world: World, at: Path) -> Path:
    return shutil.copytree(world.path("encoder") / "encoder", at / "encoder")


def _text(content: bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: (_copy(world, at) / "network.json").write_bytes(content)


def _description(*path: str, value: Any) -> Callable[[World, Path], Any]:
    return lambda world, at: _set(_copy(world, at) / "network.json", path, value)


def _set(file: Path, path: tuple[str, ...], value: Any) -> None:
    content = json.loads(file.read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    content.pop("checksum", None)  # as a stranger would
    file.write_text(json.dumps(content))


def _stage(class_path: str) -> Callable[[World, Path], Any]:
    def make(world: World, at: Path) -> None:
        folder = shutil.copytree(world.path("bundle"), at / "bundle")
        _set(folder / "generator" / "stage.json", ("stage", "class_path"), class_path)

    return make


def _weights(content: bytes) -> Callable[[World, Path], Any]:
    """Return a maker of a network whose weights are replaced, with the right checksum, as a stranger would."""

    def make(world: World, at: Path) -> None:
        folder = _copy(world, at)
        (folder / "weights.safetensors").write_bytes(content)
        _set(folder / "network.json", ("sha256",), hashlib.sha256(content).hexdigest())

    return make


def _tensors(header: dict[str, Any], data: bytes = bytes(4)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _with_link(target: str) -> Callable[[World, Path], Any]:
    return lambda world, at: (_copy(world, at) / "extra").symlink_to(target)


def _without(name: str) -> Callable[[World, Path], Any]:
    return lambda world, at: (_copy(world, at) / name).unlink()


_CHANGES: dict[str, Callable[[World, Path], Any]] = {
    "no weights": _without("weights.safetensors"),
    "no description": _without("network.json"),
    "no folder": lambda world, at: None,
    "checksum wrong": _description("sha256", value="0" * 64),
    "checksum a number": _description("sha256", value=7),
    "format 99": _description("format", value=99),
    "settings a list": _description("settings", value=[1]),
    "settings of code": _description("settings", "preprocess", value={"class_path": "os.system", "init_args": {}}),
    "arguments a list": _description("network", "init_args", value=[1]),
    "unknown argument": _description("network", "init_args", "evil", value=1),
    "channels 10^9": _description("network", "init_args", "channels", value=10**9),
    "weights empty": _weights(b""),
    "weights text": _weights(b"no weights"),
    "header of 2^60 bytes": _weights(struct.pack("<Q", 2**60) + b"{}"),
    "header no JSON": _weights(struct.pack("<Q", 4) + b"abcd"),
    "tensor of 10^12": _weights(_tensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}})),
    "tensor before the file": _weights(_tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}})),
    "tensor of no dtype": _weights(_tensors({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}})),
    "another network's tensor": _weights(_tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})),
}

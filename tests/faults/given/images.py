"""Images and tar shards that claim to be huge, are damaged, or are no files."""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..hostile import ESCAPED, Given
from ..world import DATA, World

NAME = "bad"
COUNT = 8
SCORE = "--extractor ClassifierExtractor --extractor.folder {classifier}/classifier"
READERS = {
    "evaluate": f"evaluate --samples {{at}} --data.source Digits {DATA} {SCORE} --out {{out}}/metrics.json",
    "principal": "principal --data.source FlatFolder --data.source.root {at} --data.source.channels 1 "
    "--data.source.on_bad stop --data.source.eval_share 0 --data.transform.class_path CenterCrop "
    "--data.transform.init_args.size 8 --dim 2 --out {out}",
}
TARS = "principal --data.source TarShards --data.source.root {at} --data.source.channels 1 --data.source.on_bad stop "
TARS += "--data.source.eval_share 0 --data.transform.class_path CenterCrop --data.transform.init_args.size 8 --dim 2 "
TARS += "--out {out}"


def inputs() -> Iterator[Given]:
    for reader, command in READERS.items():
        for name, (suffix, content) in _FILES.items():
            yield Given("image", f"{name}, {reader}", _among_good(suffix, content), command, (NAME + suffix,))
        for name, make in _PLACES.items():
            yield Given("image", f"{name}, {reader}", make, command, ("given", NAME), (0,))
        yield Given("image", f"empty folder, {reader}", lambda world, at: None, command, ("given",))
        yield Given("image", f"no folder, {reader}", lambda world, at: at.rmdir(), command, ("given",))
        yield Given("image", f"a file as folder, {reader}", _file_as_folder, command, ("given",))
    for name, make in _TARS.items():
        yield Given("tar", name, make, TARS, ("shard", "given"))
    for name, make in _UNUSUAL_TARS.items():
        yield Given("tar", name, make, TARS, ("shard", "given"), (0,))


def image(seed: int = 0) -> Image.Image:
    """Return a grey image of noise, 8 x 8."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """Return an image file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def good(at: Path) -> None:
    """Write some good images."""
    for number in range(COUNT):
        image(number).save(at / f"good{number}.png")


def jpeg_bomb() -> bytes:
    """Return a JPEG of a few hundred bytes that claims 65500 x 65500 pixels."""
    content = bytearray(encoded(image(), "JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def png(width: int, height: int, data: bytes, bits: int = 1) -> bytes:
    """Return a grey PNG with the given compressed rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_bomb() -> bytes:
    """Return a PNG of 30000 x 30000 pixels, all of them black, in about 100 kB."""
    pack = zlib.compressobj(1)
    row = bytes(1 + 30000 // 8)
    return png(30000, 30000, b"".join(pack.compress(row * 1000) for _ in range(30)) + pack.flush())


def _gif_bomb() -> bytes:
    content = bytearray(encoded(image(), "GIF"))
    content[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(content)


_FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG of 65500 x 65500": (".jpg", jpeg_bomb),
    "PNG of 30000 x 30000": (".png", png_bomb),
    "PNG that claims 2^31 pixels a row": (".png", lambda: png(2**31 - 1, 1, zlib.compress(b"\0"))),
    "PNG of zero pixels": (".png", lambda: png(0, 0, zlib.compress(b""))),
    "PNG with too few rows": (".png", lambda: png(8, 8, zlib.compress(b"\0\0"), 8)),
    "PNG cut short": (".png", lambda: encoded(image(), "PNG")[:60]),
    "PNG with a wrong checksum": (".png", lambda: encoded(image(), "PNG").replace(b"IDAT", b"IDAX")),
    "JPEG cut short": (".jpg", lambda: encoded(image(), "JPEG")[:300]),
    "JPEG of two bytes": (".jpg", lambda: b"\xff\xd8"),
    "GIF of 65535 x 65535": (".gif", _gif_bomb),
    "BMP of 2^31 pixels a row": (".bmp", lambda: encoded(image(), "BMP")[:18] + struct.pack("<ii", 2**31 - 1, 8)),
    "empty": (".png", lambda: b""),
    "text": (".jpg", lambda: b"no image"),
    "zeros": (".png", lambda: bytes(5000)),
    "PostScript": (".png", lambda: b"%!PS-Adobe-3.0\n(touched) (w) file closefile\n"),
    "SVG that names a file": (".png", lambda: b'<svg><image href="file:///etc/passwd"/></svg>'),
}


def _among_good(suffix: str, content: Callable[[], bytes]) -> Callable[[World, Path], Any]:
    return lambda world, at: good(at) or (at / (NAME + suffix)).write_bytes(content())


def _with(change: Callable[[Path], Any]) -> Callable[[World, Path], Any]:
    return lambda world, at: good(at) or change(at)


def _file_as_folder(world: World, at: Path) -> None:
    at.rmdir()
    at.write_bytes(b"a file")


_PLACES: dict[str, Callable[[World, Path], Any]] = {
    "a folder as image": _with(lambda at: (at / "bad.png").mkdir()),
    "a pipe as image": _with(lambda at: os.mkfifo(at / "bad.png")),
    "endless zeros as image": _with(lambda at: (at / "bad.png").symlink_to("/dev/zero")),
    "a link to itself": _with(lambda at: (at / "bad.png").symlink_to("bad.png")),
    "a link to nothing": _with(lambda at: (at / "bad.png").symlink_to("nothing")),
    "a folder in itself": _with(lambda at: (at / "bad").symlink_to(".")),
}


def tar(at: Path, members: list[tuple[str, bytes]], name: str = "shard-0.tar", mode: str = "w") -> None:
    """Write a tar of files."""
    with tarfile.open(at / name, mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _members(label: bytes = b"1") -> list[tuple[str, bytes]]:
    found = [(f"{number:04d}", encoded(image(number), "PNG")) for number in range(COUNT)]
    images = [(f"{key}.png", content) for key, content in found]
    return [*images, *((f"{key}.cls", b"0") for key, _ in found[1:]), (f"{found[0][0]}.cls", label)]


def _labelled(label: bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: tar(at, _members(label))


def _with_member(name: str, content: Callable[[], bytes]) -> Callable[[World, Path], Any]:
    return lambda world, at: tar(at, [*_members(), (name, content())])


def _cut(world: World, at: Path) -> None:
    tar(at, _members())
    path = at / "shard-0.tar"
    os.truncate(path, 3000)


def _link(target: str) -> Callable[[World, Path], Any]:
    def make(world: World, at: Path) -> None:
        tar(at, _members())
        with tarfile.open(at / "shard-0.tar", "a") as archive:
            info = tarfile.TarInfo("bad.png")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)

    return make


def _claims(size: int) -> Callable[[World, Path], Any]:
    def make(world: World, at: Path) -> None:
        info = tarfile.TarInfo("bad.png")
        info.size = size
        (at / "shard-0.tar").write_bytes(info.tobuf() + bytes(1024))

    return make


_TARS: dict[str, Callable[[World, Path], Any]] = {
    "class 99999999999": _labelled(b"99999999999"),
    "class -5": _labelled(b"-5"),
    "class 1.5": _labelled(b"1.5"),
    "class of text": _labelled(b"cat"),
    "class empty": _labelled(b""),
    "class of 10,000 digits": _labelled(b"9" * 10000),
    "class not text": _labelled(b"\xff\xfe"),
    "bomb inside": _with_member("bad.png", png_bomb),
    "damaged image inside": _with_member("bad.png", lambda: b"no image"),
    "cut short": _cut,
    "empty": lambda world, at: (at / "shard-0.tar").write_bytes(b""),
    "text": lambda world, at: (at / "shard-0.tar").write_bytes(b"no tar" * 200),
    "compressed": lambda world, at: tar(at, _members(), mode="w:gz"),
    "no tar": lambda world, at: None,
    "no image inside": lambda world, at: tar(at, [("a.cls", b"1")]),
    "member of 10^12 bytes": _claims(10**12),
    "endless zeros": lambda world, at: (at / "shard-0.tar").symlink_to("/dev/zero"),
}
_UNUSUAL_TARS: dict[str, Callable[[World, Path], Any]] = {
    "member that leaves the folder": _with_member(f"../../{ESCAPED}.png", lambda: encoded(image(), "PNG")),
    "member of an absolute path": _with_member(f"/tmp/rcg-{ESCAPED}.png", lambda: encoded(image(), "PNG")),
    "link inside": _link("/etc/passwd"),
    "link to endless zeros inside": _link("/dev/zero"),
}

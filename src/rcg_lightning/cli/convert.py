"""`rcg convert`: official files in, and back out."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from rcg_lightning.artifacts import replacing, replacing_folder
from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.errors import UserError
from rcg_lightning.official.base import Native, NetworkPart, OfficialFile, Part, StagePart
from rcg_lightning.official.tensor_report import account
from rcg_lightning.pretrained.checkpoints import READING_FAILS, read_checkpoint
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import plain_copy
from rcg_lightning.pretrained.placeholders import read_with_placeholders, unsafe_name
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.types import require


def convert(
    source: Path,
    out: Path,
    to: Literal["native", "official"] = "native",
    kind: OfficialFile | None = None,
    trust_pickle: bool = False,
) -> None:
    """Turn an official file into what is used here, or what was trained here into an official file.

    Says of every tensor whether it was mapped, changed or ignored, and why. Nothing is written unless all of it fits.

    Args:
        source: the file to read (also written --from), or the folder of IC-GAN's G.pth, G_ema.pth and D.pth; back to
            official: a checkpoint, a stage's folder, a bundle, or the folder of an encoder.
        out: folder to write: of a network, of a stage, or a bundle of all that the file holds; back: the file, of
            IC-GAN the folder.
        to: native, or official.
        kind: what the file is, where its content does not tell, or with what its shapes do not tell: mocov3, dino,
            ibot, deit, rdm, mage, dit, adm, ldm, maskgitvqgan, ldmvq, icgan, icganstylegan2.
        trust_pickle: read a file that holds pickled objects besides weights. They become empty stand-ins, and nothing
            of them is run.
    """
    if to == "official":
        to_official(source, out, kind)
    else:
        to_native(read(source, trust_pickle), str(source), out, kind)


def read(path: Path, trust_pickle: bool) -> dict[str, Any]:
    """Return the content of an official file; of a folder of several, that of each by its name.

    Raises:
        UserError: there is no such file, it is damaged, or it holds objects and ``trust_pickle`` is not set.
    """
    if path.is_dir():
        return {name: read(file, trust_pickle) for name, file in files_in(path).items()}
    try:
        return read_checkpoint(path, "an official model")
    except UserError as error:
        _reject_objects(path, error)
        name = unsafe_name(error.__cause__)
        if name is None:
            raise
        if not trust_pickle:
            raise UserError(
                f"{path} holds more than weights: {name}, an object whose reading could run code. Nothing was run. "
                "--trust_pickle true reads the weights next to it and leaves such objects out"
            ) from error
    try:
        content, names = read_with_placeholders(path)
    except READING_FAILS as error:
        raise UserError(f"{path} cannot be read, also not without its objects: {str(error)[:200]}") from error
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__} instead of weights")
    echo(f"left out    {', '.join(names)}: objects, not weights")
    return dict(content)


def files_in(folder: Path) -> dict[str, Path]:
    """Return the files of one official model in a folder, by their names without the suffix that all of them have.

    The official IC-GAN calls a model's files ``G.pth``, ``G_ema.pth``, ``D.pth``, those of its best one ``G_best0.pth``
    and so on.

    Raises:
        UserError: there are none, or those of several models.
    """
    names = sorted({name for kind in OfficialFile.kinds().values() for name in kind.files}, key=len, reverse=True)
    models: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.pth")):
        match = re.fullmatch(rf"({'|'.join(names)})(_(?!ema|optim)\w+)?", file.stem)
        if match is not None and not file.stem.endswith("_optim"):
            models.setdefault(match[2] or "", {})[match[1]] = file
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4]) or "nothing"
    expected = f"give an official file, or the folder of {', '.join(f'{name}.pth' for name in sorted(names))}"
    require(bool(models), f"{folder} holds {held}, and no official model: {expected}")
    many = f"{folder} holds several models ({held}, …): put the files of one of them into a folder"
    require(len(models) == 1 or "" in models, many)
    return models[""] if "" in models else next(iter(models.values()))


def _reject_objects(path: Path, error: UserError) -> None:
    """Raise a UserError with advice where a file that could not be read is one of the whole objects of a known kind."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(1 << 20)
    for kind in OfficialFile.kinds().values():
        for mark, advice in kind.pickled.items():
            if mark in start:
                raise UserError(f"{path} holds whole objects, which are not read: {advice}") from error


def to_native(content: Mapping[str, Any], where: str, out: Path, kind: OfficialFile | None = None) -> None:
    """Write what an official file holds as a folder, and say what became of its tensors."""
    kind = kind or OfficialFile.of(content, where)
    parts = kind.parts(content, where)
    write(parts, out)
    echo(f"{where}: {kind.called}")
    for name, part in parts.items():
        echo(f"{name:<12}{part.says} -> {out if len(parts) == 1 else out / name}")
    used = [tensor for part in parts.values() for tensor in part.used.values()]
    missing = [line for part in parts.values() if isinstance(part, StagePart) for line in part.missing]
    changed = {pattern: how for part in parts.values() for pattern, how in part.changed.items()}
    for line in account(content, used, kind.ignored, changed).lines():
        echo(line)
    echo(f"missing     {'; '.join(missing) or 'none'}")


def write(parts: Mapping[str, Part], out: Path) -> None:
    """Write one part as ``out`` itself, several as a bundle; ``out`` appears complete or not at all."""
    mark = {NetworkPart: NETWORK, StagePart: STAGE}
    first, part = next(iter(parts.items()))
    if len(parts) == 1:
        part.save(out, {})
        return
    with replacing_folder(out, f"{first}/{mark[type(part)]}", "a bundle like this") as draft:
        for name, part in sorted(parts.items(), key=lambda item: isinstance(item[1], StagePart)):  # networks first
            part.save(draft / name, {other: draft / other for other in parts if (draft / other).is_dir()})


def to_official(source: Path, out: Path, kind: OfficialFile | None = None) -> None:
    """Write what was trained here as a file in the official layout, or as a folder where that has several."""
    native = Native.read(source)
    kind = kind or OfficialFile.for_native(native)
    content = _plain(kind.official(native))
    if kind.files:
        with replacing_folder(out, f"{kind.files[0]}.pth", "a folder of official files") as draft:
            for name, state in content.items():
                torch.save(state, draft / f"{name}.pth")
    else:
        require(not out.is_dir(), f"{out} is a folder: give the name of a file, such as {out / 'checkpoint.pth'}")
        with replacing(out) as draft:
            torch.save(content, draft)
    count = sum(len(value) for value in content.values() if isinstance(value, dict))
    echo(f"{out}: {kind.called} of {count} tensors, from {source}")


def _plain(content: Any) -> Any:
    """Copies on the CPU of all tensors: views of one memory would be saved as a whole."""
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    return plain_copy(content) if isinstance(content, torch.Tensor) else content


def kind_words(argv: Sequence[str]) -> list[str]:
    """Return the command line with the short name of a kind in the place of which the parser knows its class."""
    words = ["--source" if word == "--from" else word.replace("--from=", "--source=", 1) for word in argv]
    known = OfficialFile.kinds()
    for i, word in enumerate(words):
        value = word.removeprefix("--kind=")
        named = word.startswith("--kind=") or (i > 0 and words[i - 1] == "--kind")
        if named and not value.startswith("{"):
            kind = known.get(value.rpartition(".")[2].removesuffix("File").lower())
            require(kind is not None, f"there is no kind {value}: there are {', '.join(sorted(known))}")
            words[i] = word.replace(value, kind.__name__)  # type: ignore[union-attr]
    return words


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg convert --from vit-b-300ep.pth.tar --out runs/mocov3              an encoder, for TrainedEncoder",
        "rcg convert --from rcg_mage_b.pth --out runs/mage_b                   generator, autoencoder and encoder",
        "rcg convert --from dit.pth --kind dit --kind.heads 16 --out runs/dit  told what shapes do not tell",
        "rcg convert --from icgan_imagenet256 --out runs/icgan                 the folder of G.pth, G_ema.pth, D.pth",
        "rcg convert --to official --from runs/rdm/last.ckpt --out rdm.pth     and back",
    ]
    call(convert, name, kind_words(argv), examples)

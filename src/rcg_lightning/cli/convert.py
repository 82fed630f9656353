"""`rcg convert`: official files into the native format, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.official.base import OfficialFile
from rcg_lightning.official.conversion import to_native, to_official
from rcg_lightning.types import require


def convert(
    source: Path,
    out: Path,
    to: Literal["native", "official"] = "native",
    kind: OfficialFile | None = None,
    trust_pickle: bool = False,
) -> None:
    """Convert an official file into a native folder, or a model trained here into an official file.

    The report lists every tensor as mapped, changed or ignored, and why. Nothing is written unless all tensors fit.

    Args:
        source: file to read (also --from), or the folder of IC-GAN's G.pth, G_ema.pth and D.pth. For ``to official``:
            a checkpoint, a stage folder, a bundle, or the folder of an encoder.
        out: folder to write: of a network, of a stage, or a bundle of all models in the file. For ``to official``: the
            file, for IC-GAN the folder.
        to: native or official.
        kind: of the file, where its content does not show it, or with settings that its shapes do not determine:
            mocov3, dino, ibot, deit, rdm, mage, dit, adm, ldm, maskgitvqgan, ldmvq, icgan, icganstylegan2.
        trust_pickle: read a file that holds pickled objects in addition to weights. They become empty placeholders;
            none of their code is run.
    """
    report = to_official(source, out, kind) if to == "official" else to_native(source, out, kind, trust_pickle)
    for line in report:
        echo(line)


def with_class_names(argv: Sequence[str]) -> list[str]:
    """Replace the short name of a kind on the command line by its class name, which the parser knows."""
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
        "rcg convert --from dit.pth --kind dit --kind.heads 16 --out runs/dit  with settings that shapes do not show",
        "rcg convert --from icgan_imagenet256 --out runs/icgan                 the folder of G.pth, G_ema.pth, D.pth",
        "rcg convert --to official --from runs/rdm/last.ckpt --out rdm.pth     and back",
    ]
    call(convert, name, with_class_names(argv), examples)

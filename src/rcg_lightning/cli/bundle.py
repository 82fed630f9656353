"""`rcg bundle`: everything that sampling needs, in one folder."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.sampling.bundle import write_bundle


def bundle(
    out: Path,
    generator: Path,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
) -> None:
    """Put a generator and the models that it needs into one folder, which `rcg sample --checkpoint` takes alone.

    The other parts of given bundles are included: the autoencoder and encoder of a converted generator, the encoder
    of a converted RDM.

    Args:
        out: folder to write, complete or not at all; an existing bundle is replaced.
        generator: checkpoint, stage folder or bundle of the generator.
        prior: the same for the RDM, for a generator conditioned on representations.
        instances: a store of instances, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, or a bundle that holds it; for KL latents,
            a folder in diffusers' layout, or a file in the original layout.
        encoder: folder of the encoder's network, or a bundle that holds it.
    """
    names = write_bundle(out, generator, prior, instances, autoencoder, encoder)
    echo(f"{out}: a bundle of {', '.join(names)}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bundle --generator runs/generator/last.ckpt --prior runs/rdm/last.ckpt --out runs/rcg",
        "rcg bundle --generator runs/mage_b --prior runs/rdm --out runs/rcg_mage_b          of converted files",
        "rcg sample --checkpoint runs/rcg_mage_b --config rcg_mage_b_guided --out samples",
    ]
    call(bundle, name, argv, examples)

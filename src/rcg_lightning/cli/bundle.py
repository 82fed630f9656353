"""`rcg bundle`: everything that sampling needs, in one folder."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call, with_option
from rcg_lightning.sampling.bundle import write_bundle
from rcg_lightning.sampling.run_parts import is_run
from rcg_lightning.types import require


def bundle(
    generator: Path,
    out: Path | None = None,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
) -> None:
    """Put a generator and the models that it needs into one folder, which `rcg sample --checkpoint` takes alone.

    The other parts of given bundles are included: the autoencoder and encoder of a converted generator, the encoder
    of a converted RDM.

    Args:
        generator: its checkpoint, stage folder or bundle; or the folder of its run, in which the other parts are found.
            The option's name may be left out: rcg bundle runs/digits.
        out: folder to write, complete or not at all; an existing bundle is replaced. None: bundle, in the run's folder.
        prior: the same for the RDM, for a generator conditioned on representations.
        instances: a store of instances, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, or a bundle that holds it; for KL latents,
            a folder in diffusers' layout, or a file in the original layout.
        encoder: folder of the encoder's network, or a bundle that holds it.
    """
    if out is None:
        require(generator.is_dir() and is_run(generator), "--out is missing: give the folder to write")
        out = generator / "bundle"
    names = write_bundle(out, generator, prior, instances, autoencoder, encoder)
    echo(f"{out}: a bundle of {', '.join(names)}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bundle runs/digits",
        "rcg bundle --generator runs/generator/last.ckpt --prior runs/rdm/last.ckpt --out runs/rcg",
        "rcg bundle --generator runs/mage_b --prior runs/rdm --out runs/rcg_mage_b          of converted files",
        "rcg sample --checkpoint runs/rcg_mage_b --config rcg_mage_b_guided --out samples",
    ]
    call(bundle, name, with_option(argv, "--generator"), examples, folders=("out",))

"""`rcg gallery`: images that show what a generator has learned."""

from pathlib import Path

from rcg_lightning.arguments import NonNegativeFloat
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.sample_readers import open_samples, samples_folder
from rcg_lightning.sampling.gallery import Gallery
from rcg_lightning.sampling.loading import chosen_guidance, load
from rcg_lightning.trainer import pick_device

MOST = 1000  # samples whose nearest training images are sought


def gallery(
    checkpoint: Path,
    data: ImageDataModule,
    out: Path,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    samples: Path | None = None,
    guidance: NonNegativeFloat | None = None,
    accelerator: str = "auto",
) -> None:
    """Write samples.png and nearest.png: the samples nearest to a training image, next to it.

    A generator conditioned on representations also gets variations.png and interpolation.png, of evaluation images
    whose representations are stored (--data.eval_stores).

    Args:
        checkpoint: of the generator, or the folder of its run.
        data: the images, with their stores.
        out: folder to write.
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: store from which instances are chosen at random, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, for a generator of these.
        samples: of the generator, as `rcg sample` wrote them; None makes 64.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        accelerator: cpu, gpu, mps or auto.
    """
    loaded = load(checkpoint, prior, autoencoder=autoencoder, instances=instances)
    drawn = Gallery(loaded, data, chosen_guidance(loaded.generator, guidance), pick_device(accelerator))
    given = None if samples is None else open_samples(samples_folder(samples)).first(MOST)
    for name in drawn.write(out, given):
        echo(f"{out / name}.png")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg gallery --checkpoint runs/generator/last.ckpt --prior runs/rdm/last.ckpt --config digits/data "
        "--data.eval_stores [runs/eval_store] --out runs/gallery",
    ]
    call(gallery, name, argv, examples)

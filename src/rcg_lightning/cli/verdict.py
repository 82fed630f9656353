"""`rcg verdict`: whether the stages of a run are good, usable or broken, and what to do."""

from pathlib import Path

from rcg_lightning.arguments import SampleCount
from rcg_lightning.artifacts import write_json, write_text
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.verdict import Verdict, verdict_text
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.stage_measurements import StageMeasurements
from rcg_lightning.trainer import pick_device
from rcg_lightning.types import Codec, require


def verdict(
    data: ImageDataModule,
    out: Path,
    encoder: Encoder | None = None,
    codec: Codec | None = None,
    prior: Path | None = None,
    samples: Path | None = None,
    extractor: FeatureExtractor | None = None,
    number: SampleCount = 1000,
    accelerator: str = "auto",
) -> None:
    """Evaluate the stages of a run: one line for each that is given, good, usable or broken, and what to do.

    Every stage is compared with references that are measured on the same images: an encoder with principal components
    of the pixels and with an untrained network, a tokenizer with the mean image, representations with real ones and
    with noise, samples with real images and with images whose pixels are shuffled. So the verdicts hold for any data.

    Args:
        data: the images; --data.stores for the verdict on an RDM.
        out: folder to write: verdict.json and verdict.md.
        encoder: of the run.
        codec: of the run: tokens or latents, with the folder of the autoencoder.
        prior: checkpoint of the RDM.
        samples: of the generator, as `rcg sample` wrote them, or a folder of images.
        extractor: makes the features to compare images in; it must be independent of the encoder. None: of an untrained
            network.
        number: maximum number of images, samples and representations to compare.
        accelerator: cpu, gpu, mps or auto.
    """
    given = {"--encoder": encoder, "--codec": codec, "--prior": prior, "--samples": samples}
    some = any(part is not None for part in given.values())
    require(some, f"nothing to evaluate: give {', '.join(given)} or some of them")
    measure, found = StageMeasurements(data, number, pick_device(accelerator), extractor), []

    def add(one: Verdict) -> None:
        echo(one.line())
        found.append(one)

    if encoder is not None:
        add(measure.encoder(encoder))
    if codec is not None:
        add(measure.tokenizer(codec))
    if prior is not None:
        add(measure.rdm(prior))
    if samples is not None:
        add(measure.generator(samples, represented=prior is not None))
    write_json(out / "verdict.json", [one.to_dict() for one in found])
    write_text(out / "verdict.md", verdict_text(found))


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg verdict --config digits/data --data.stores [runs/store] --encoder TrainedEncoder --encoder.folder "
        "runs/encoder/encoder --prior runs/rdm/last.ckpt --samples runs/samples --out runs/verdict",
    ]
    call(verdict, name, argv, examples)

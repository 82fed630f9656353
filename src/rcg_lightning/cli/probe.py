"""`rcg probe`: quality of an encoder's representations."""

from pathlib import Path

from rcg_lightning.arguments import NonNegativeFloat, PositiveInt, SampleCount
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.probe import probe_representations
from rcg_lightning.metrics.probes import NEIGHBOURS, REGULARISATION
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.trainer import pick_device


def probe(
    data: ImageDataModule,
    encoder: Encoder | None = None,
    neighbours: PositiveInt = NEIGHBOURS,
    regularisation: NonNegativeFloat = REGULARISATION,
    max_images: SampleCount = 200_000,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
) -> None:
    """Probe representations: uniformity, effective rank and, where there are labels, a kNN and a linear probe.

    They come from an encoder, or from stores (--data.stores and --data.eval_stores).

    Args:
        data: the images and, for the accuracies, their labels.
        encoder: computes the representations; without it those of the stores are probed.
        neighbours: k of kNN, by cosine and weighted.
        regularisation: of the linear probe: weight of ½|W|² against the sum of the cross entropies.
        max_images: maximum number of training images, spread evenly.
        out: JSON file for metrics and protocol.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    content = probe_representations(data, encoder, neighbours, regularisation, max_images, pick_device(accelerator))
    if data.images("train").labels is None and not json:
        echo("these data have no labels: no accuracies")
    report(content, out, json)


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg probe --config digits/data --encoder TrainedEncoder --encoder.folder runs/encoder/encoder",
        "rcg probe --config digits/data --data.stores [runs/store] --data.eval_stores [runs/eval_store]",
    ]
    call(probe, name, argv, examples)

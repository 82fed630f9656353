"""`rcg reconstruct`: quality of a codec's reconstructions."""

from pathlib import Path
from typing import Literal

from rcg_lightning.arguments import NonNegativeInt, PositiveInt, SampleCount
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.reconstruction import CodecEvaluation
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.reconstruction import LPIPSBackbone
from rcg_lightning.trainer import Devices, Trainer
from rcg_lightning.types import Codec, require


def reconstruct(
    codec: Codec,
    data: ImageDataModule,
    extractor: FeatureExtractor | None = None,
    lpips: LPIPSBackbone | None = None,
    split: Literal["train", "eval"] = "eval",
    number: SampleCount | None = None,
    images: NonNegativeInt = 0,
    batch_size: PositiveInt = 64,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: PositiveInt = 1,
    precision: str | None = None,
) -> None:
    """Score the reconstructions of a codec: PSNR, SSIM, LPIPS and the Fréchet distance to the originals (rFID).

    Args:
        codec: such as VQTokens with the folder of its autoencoder.
        data: the images.
        extractor: makes the features for the Fréchet distance: InceptionExtractor for rFID; None omits it.
        lpips: network of LPIPS (alex in most publications); None omits it.
        split: eval for evaluation images, or train.
        number: score only the first ``number`` images; None scores all.
        images: number of originals to show with their reconstructions in an image next to ``out``.
        batch_size: affects only speed and memory.
        out: JSON file for metrics and protocol.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: number of machines of the job.
        precision: outside the frozen networks; theirs are --codec.precision and --extractor.precision.
    """
    require(
        codec.makes == "image", f"{type(codec).__name__} reconstructs {codec.makes}s, not images: choose another codec"
    )
    require(not images or out is not None, "--images writes an image next to --out: give --out as well")
    evaluation = CodecEvaluation(codec, data, extractor, lpips, split, number)
    trainer = Trainer(
        Path(".") if out is None else out.parent,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        logger=False,
        enable_progress_bar=not json,
    )
    data.batch_size = batch_size
    content = evaluation.run(trainer, out, images)
    if trainer.is_global_zero:
        report(content, out, json)


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg reconstruct --codec VQTokens --codec.folder runs/tokenizer/autoencoder --data.source Digits",
        "rcg reconstruct … --extractor InceptionExtractor --lpips alex --images 12 --out runs/reconstruction.json",
    ]
    call(reconstruct, name, argv, examples)

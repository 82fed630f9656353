"""`rcg reconstruct`: how well a codec gives images back."""

from pathlib import Path
from typing import Literal

from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.reconstruction import CodecEvaluation
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.reconstruction import Backbone
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Codec, require


def reconstruct(
    codec: Codec,
    data: ImageDataModule,
    extractor: FeatureExtractor | None = None,
    lpips: Backbone | None = None,
    split: Literal["train", "eval"] = "eval",
    number: int | None = None,
    images: int = 0,
    batch_size: int = 64,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Score what a codec gives back: PSNR, SSIM, LPIPS and the Fréchet distance to the originals (rFID).

    Args:
        codec: such as VQTokens with the folder of its autoencoder.
        data: the images.
        extractor: features for the Fréchet distance: InceptionExtractor for rFID; None leaves it out.
        lpips: network of LPIPS (alex in most publications); None leaves it out.
        split: which images, those for evaluation or those for training.
        number: score this many images, the first; None for all.
        images: show this many next to what is given back, in an image next to ``out``.
        batch_size: images at once; changes speed and memory alone.
        out: JSON file to write metrics and protocol to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: of the codec's surroundings; None takes bf16-mixed on GPUs that have it and 32-true elsewhere.
    """
    require(codec.makes == "image", f"{type(codec).__name__} gives back {codec.makes}s, not images: choose another")
    require(not images or out is not None, "--images writes an image next to --out: give it, too")
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
    """Parse the command line of `rcg reconstruct`; --json may stand without a value."""
    argv = ["--json=true" if word == "--json" else word for word in argv]
    examples = [
        "rcg reconstruct --codec VQTokens --codec.folder runs/tokenizer/autoencoder --data.source Digits",
        "rcg reconstruct … --extractor InceptionExtractor --lpips alex --images 12 --out runs/reconstruction.json",
    ]
    call(reconstruct, name, argv, examples)

"""`rcg evaluate`: figures for a checkpoint, a folder of pictures, an .npz or a store of samples."""

import json
from pathlib import Path

from lightning.pytorch import LightningModule

from rcg_lightning.commands.compare import pick_device, samples_folder
from rcg_lightning.commands.generator import load
from rcg_lightning.commands.parsing import call, say, watched
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.images import ImageData
from rcg_lightning.data.seeds import Seeds
from rcg_lightning.evaluation.extractors import FeatureExtractor
from rcg_lightning.evaluation.reading import open_samples
from rcg_lightning.evaluation.reference import Reference, reference_of
from rcg_lightning.evaluation.scores import CHEAP, Scorer, score
from rcg_lightning.stages.generator import Generator
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, require, to_uint8


class ScoredSampling(LightningModule):
    """Scores samples as they are made; no picture touches the disk, and any number of processes take part."""

    def __init__(
        self, generator: Generator, scorer: Scorer, guidance: Guidance | None, sampler: Sampler | None
    ) -> None:
        super().__init__()
        self.generator, self.scorer, self.guidance, self.sampler = generator, scorer, guidance, sampler
        self.figures: dict[str, float] = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        made = self.generator.sample(batch, self.guidance, self.sampler)
        self.scorer.update(to_uint8(made), batch["index"])

    def on_predict_end(self) -> None:
        self.figures = self.scorer.compute()


def evaluate(
    samples: Path,
    extractor: FeatureExtractor,
    data: ImageData | None = None,
    statistics: Path | None = None,
    reference: Path | None = None,
    number: int = 5000,
    first_seed: int = 0,
    prior: Path | None = None,
    guidance: float | None = None,
    ramp: bool = False,
    sampler: Sampler | None = None,
    batch_size: int = 256,
    out: Path | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Score samples against real pictures: Fréchet distance, Inception score, precision, recall, copies.

    Args:
        samples: a generator's checkpoint, a folder of pictures, an .npz with arr_0, or what `rcg sample` wrote.
        extractor: features to compare in: InceptionExtractor for FID and IS, ClassifierExtractor, EncoderExtractor.
        data: the real pictures.
        statistics: published reference statistics (.npz with mu and sigma) in place of data.
        reference: folder in which the real pictures' features are kept for the next time.
        number: samples to make from a checkpoint.
        first_seed: their seeds are first_seed, first_seed + 1, …
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        ramp: let guidance grow linearly over sampling.
        sampler: None for the generator's own.
        batch_size: samples made at once.
        out: JSON file to write the figures to.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: of sampling; features are always float32.
    """
    require((data is None) != (statistics is None), "give what to compare with: either --data or --statistics")
    extractor.setup()
    device = pick_device(accelerator)
    if statistics is not None:
        real = Reference.from_statistics(statistics)
    else:
        assert data is not None
        data.prepare_data()
        real = reference_of(data, extractor, reference, device)
    is_checkpoint = samples.suffix in (".ckpt", ".pt", ".pth")
    if is_checkpoint:
        generator = load(samples, prior).generator
        require(generator.codec.makes == "image", f"{samples} makes no pictures: evaluate a generator of pictures")
        strength = None if guidance is None else Guidance(guidance, ramp)
        module = ScoredSampling(generator, Scorer(extractor, real), strength, sampler)
        trainer = Trainer(
            samples.parent,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            logger=False,
        )
        seeds = Seeds(list(range(first_seed, first_seed + number)), batch_size)
        trainer.predict(module, datamodule=seeds, return_predictions=False)
        figures, count, speaks = module.figures, number, trainer.is_global_zero
    else:
        found = open_samples(samples_folder(samples))
        watch = watched(found, "scoring", -(-found.count // 256))
        figures, count, speaks = score(watch, real, extractor, device), found.count, True
    if speaks:
        _report(Scorer(extractor, real, CHEAP).full_names(figures, count), out)


def _report(named: dict[str, float], out: Path | None) -> None:
    for name, value in named.items():
        say(f"{name:<40} {value:.4f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(named, indent=1))


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg evaluate --samples runs/generator/last.ckpt --prior runs/rdm/last.ckpt --extractor ClassifierExtractor "
        "--extractor.folder runs/classifier/classifier --data.source Digits",
        "rcg evaluate --samples pictures/ --extractor InceptionExtractor --statistics VIRTUAL_imagenet256_labeled.npz",
    ]
    call(evaluate, name, argv, examples)

"""Generators of CIFAR-10 without a condition, by class and by representation: the same network and time, compared."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rcg_lightning.gpu_check.commands import Commands, fit
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.pretrained.checkpoints import read_torch
from rcg_lightning.types import require

CONDITIONS = {"none": "NoCondition", "class": "ClassCondition", "representation": "RepresentationCondition"}
TRAININGS = 5.0  # in lengths of a generator's: three of them, the encoder, classifier and RDM with half of it each
OVERHEAD = 45.0  # seconds for everything else
NUMBER = 2048


@dataclass(frozen=True)
class CIFAR10Check:
    """Trains, samples and compares by real commands; a rehearsal takes the digits.

    Args:
        target: the device.
        folder: for the runs.
        out: for table and images.
        run: runs commands.
        minutes: of a generator's training.
        images: folder of CIFAR-10.
    """

    target: Target
    folder: Path
    out: Path
    run: Commands
    minutes: float
    images: Path | None

    def trials(self) -> Iterable[Trial]:
        """Return the checks; each needs those before it."""
        yield Trial("encoder", partial(self.train, "encoder", 1.0))
        yield Trial("representations", self.extract)
        yield Trial("RDM", partial(self.train, "rdm", 0.5, *self.stores()))
        for name, condition in CONDITIONS.items():
            words = ["--model.condition", condition, *(self.stores() if name == "representation" else [])]
            yield Trial(f"generator, {name}", partial(self.train, "generator", 1.0, *words, name=name))
        yield Trial("classifier", partial(self.train, "classifier", 0.5))
        yield Trial("samples", self.sample)
        yield Trial("Fréchet distances", self.compare)

    @property
    def data(self) -> str:
        """Folder of the configs."""
        return "digits" if self.target.rehearsal else "cifar10"

    def train(self, config: str, share: float, *words: object, name: str = "") -> list[Finding]:
        """Train a stage for a share of the minutes."""
        folder = self.folder / (name or config)
        length = (
            ["--trainer.max_steps", 2]
            if self.target.rehearsal
            else ["--trainer.max_time", clock(60 * self.minutes * share)]
        )
        self.run(
            *fit(self.target, f"{self.data}/{config}", folder), *self.source(), *self.changes(config), *words, *length
        )
        steps = read_torch(folder / "last.ckpt")["global_step"]
        return [Finding(f"{self.data}/{config} {name}".rstrip(), f"{steps} steps")]

    def changes(self, config: str) -> list[object]:
        """Return the settings that suit a training of seconds: a constant rate after a short warm-up, a short EMA."""
        if self.target.rehearsal:
            return []
        constant = ["--model.optimizer.init_args.lr_schedule", "ConstantLR"]
        warm = [*constant, "--model.optimizer.init_args.lr_schedule.init_args.warmup", 50]
        small = ["--model.denoiser.network.init_args.size", "S/4", "--model.ema.decay", 0.995]
        return {"generator": [*warm, *small], "rdm": [*warm, "--model.ema.decay", 0.995]}.get(config, warm)

    def source(self) -> list[object]:
        """Return the settings of the images."""
        if self.target.rehearsal:
            return []
        assert self.images is not None, "the part needs the images"
        return [*source_of(self.images), "--data.workers", 8]

    def stores(self) -> list[object]:
        """Return the settings of the stored representations."""
        train, evaluation = self.folder / "store", self.folder / "eval_store"
        return ["--data.stores", f"[{train}]", "--data.eval_stores", f"[{evaluation}]"]

    def extract(self) -> list[Finding]:
        """Store the representations of both splits."""
        encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", self.folder / "encoder" / "encoder"]
        where = ["--accelerator", self.target.accelerator, *self.limit(), *self.source()]
        for split, name in (("train", "store"), ("eval", "eval_store")):
            out = ["--split", split, "--out", self.folder / name]
            self.run("extract", "--config", f"{self.data}/data", *encoder, *where, *out)
        return [Finding("representations", "stored", passed=True)]

    def limit(self) -> list[object]:
        """Return the limit of training images, as ``fit`` has it."""
        return ["--data.source.limit", 64] if self.target.rehearsal else []

    def sample(self) -> list[Finding]:
        """Sample every generator with the same seeds."""
        number = 8 if self.target.rehearsal else NUMBER
        for name in CONDITIONS:
            words = [
                "sample",
                "--checkpoint",
                self.folder / name / "last.ckpt",
                "--out",
                self.folder / f"samples_{name}",
            ]
            prior = ["--prior", self.folder / "rdm" / "last.ckpt"] if name == "representation" else []
            size = ["--number", number, "--tile", 8 if self.target.rehearsal else 256, "--png", "false"]
            self.run(*words, *prior, *size, "--accelerator", self.target.accelerator)
        return [Finding("samples", f"{number} by each generator", passed=True)]

    def compare(self) -> list[Finding]:
        """Compare the samples in one classifier's features; write table and images."""
        rows = [{"condition": name, "seed": 0, "samples": str(self.folder / f"samples_{name}")} for name in CONDITIONS]
        listed = self.folder / "rows.json"
        listed.write_text(json.dumps(rows))
        classifier = [
            "--extractor",
            "ClassifierExtractor",
            "--extractor.folder",
            self.folder / "classifier" / "classifier",
        ]
        words = [
            "compare",
            "--config",
            f"{self.data}/data",
            *self.limit(),
            *self.source(),
            *classifier,
            "--rows",
            listed,
        ]
        self.run(*words, "--out", self.out, "--accelerator", self.target.accelerator)
        distances = distances_of(json.loads((self.out / "results.json").read_text()))
        value = ", ".join(f"{name} {distance:.3g}" for name, distance in distances.items())
        expected = "expected: class and representation far below none"
        return [
            Finding("Fréchet distance to the training images", value, expected, note=f"images: {self.out}/grid.png")
        ]


def distances_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the Fréchet distance of each row of `rcg compare`."""
    return {" ".join([row["condition"], row.get("part", "")]).strip(): row["metrics"]["fd"] for row in results}


def source_of(images: Path) -> list[object]:
    """Return the settings of the images that read a folder of CIFAR-10.

    Raises:
        UserError: it holds neither form.
    """
    if (images / "cifar-10-batches-py").is_dir():
        return ["--data.source.root", images]
    found = (images / "train").is_dir() and (images / "test").is_dir()
    require(found, f"--images: {images} holds neither cifar-10-batches-py nor train and test: unpack CIFAR-10 there")
    sized = ["--data.transform", "CenterCrop", "--data.transform.size", 32]  # files could have any size
    return ["--data.source", "ImageFolder", "--data.source.root", images, *sized]


def clock(seconds: float) -> str:
    """Return a duration as Lightning's ``max_time`` reads it: days, hours, minutes, seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"00:{hours:02d}:{minutes:02d}:{rest:02d}"

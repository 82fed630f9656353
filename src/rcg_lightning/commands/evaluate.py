"""`rcg evaluate`: figures for a checkpoint, a folder of pictures, an .npz or a store of samples."""

import json
import statistics as spreads
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rcg_lightning.commands.compare import pick_device, samples_folder
from rcg_lightning.commands.generator import chosen_labels, load
from rcg_lightning.commands.parsing import call, say, watched
from rcg_lightning.conditions import LABEL_STREAM
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.random import SeededNoise
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.images import ImageData
from rcg_lightning.data.seeds import Seeds
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.extractors import FeatureExtractor
from rcg_lightning.evaluation.protocols import (
    Labels,
    Protocol,
    Quantisation,
    bind_data,
    bind_samples,
    bind_statistics,
    find_protocol,
)
from rcg_lightning.evaluation.reading import open_samples
from rcg_lightning.evaluation.records import comparable
from rcg_lightning.evaluation.reference import BATCH
from rcg_lightning.evaluation.scores import EVERY, USUAL, Scorer, score
from rcg_lightning.stages.folder import holds_stage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, require

NUMBER = 5000  # samples made where neither protocol nor user says


class ScoredSampling(LightningModule):
    """Scores samples as they are made; no picture touches the disk, and any number of processes take part.

    Args:
        scorers: one for each block of seeds.
        number: samples of a block.
    """

    def __init__(
        self,
        generator: Generator,
        scorers: list[Scorer],
        number: int,
        protocol: Protocol,
        guidance: Guidance | None,
        sampler: Sampler | None,
    ) -> None:
        super().__init__()
        self.generator, self.guidance, self.sampler = generator, guidance, sampler
        self.scorers, self.number, self.protocol = torch.nn.ModuleList(scorers), number, protocol
        self.waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in scorers]  # pictures and their positions
        self.figures: list[dict[str, float]] = []

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        made = self.protocol.quantise(self.generator.sample(batch, self.guidance, self.sampler))
        block = batch["index"] // self.number
        for i in block.unique().tolist():
            mine = block == i
            self.waiting[i].append((made[mine], batch["index"][mine] % self.number))
            self._score(i, BATCH)

    def _score(self, i: int, least: int) -> None:
        """Score what waits of a block, in the batches that files are scored in: figures agree to the last digit."""
        while sum(len(pictures) for pictures, _ in self.waiting[i]) >= least:
            pictures, positions = (torch.cat(parts) for parts in zip(*self.waiting[i], strict=True))
            self.scorers[i].update(pictures[:BATCH], positions[:BATCH])  # type: ignore[operator]
            rest = pictures[BATCH:], positions[BATCH:]
            self.waiting[i] = [rest] if len(rest[0]) else []

    def on_predict_end(self) -> None:
        for i in range(len(self.scorers)):
            self._score(i, 1)
        self.figures = [scorer.compute() for scorer in self.scorers]  # type: ignore[operator]


@dataclass(frozen=True)
class Scored:
    """Figures of each block of seeds, by short names; ``speaks`` in one of the processes that made them."""

    blocks: list[dict[str, float]]
    number: int
    format: str
    speaks: bool = True


def evaluate(
    samples: Path,
    extractor: FeatureExtractor | None = None,
    data: ImageData | None = None,
    statistics: Path | None = None,
    reference_samples: Path | None = None,
    protocol: str | None = None,
    reference: Path | None = None,
    number: int | None = None,
    first_seed: int = 0,
    seeds: int = 1,
    labels: Labels | None = None,
    quantisation: Quantisation | None = None,
    prior: Path | None = None,
    guidance: float | None = None,
    ramp: bool = False,
    sampler: Sampler | None = None,
    batch_size: int = 256,
    all: bool = False,
    out: Path | None = None,
    json: bool = False,
    against: Path | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Score samples against real pictures: Fréchet distance, Inception score, precision, recall, copies.

    Args:
        samples: a generator's checkpoint, a folder of pictures, an .npz with arr_0, or what `rcg sample` wrote.
        extractor: features to compare in: InceptionExtractor for FID and IS, ClassifierExtractor, EncoderExtractor; may
            be left out where the protocol has one.
        data: the real pictures.
        statistics: published reference statistics (.npz with mu and sigma) in place of data.
        reference_samples: other samples in place of data: a folder, an .npz or a store.
        protocol: adm-256, val-50k, train-50k, cifar10-train, icgan, digits or mnist; what is given besides changes it.
        reference: folder in which the real pictures' features are kept for the next time.
        number: samples to make from a checkpoint, for each block of seeds; 5000 unless the protocol says.
        first_seed: their seeds are first_seed, first_seed + 1, …
        seeds: score so many blocks of different seeds (of files: equal parts); mean and deviation are given.
        labels: classes of samples made from a checkpoint: generated, balanced or random.
        quantisation: of samples made from a checkpoint: round or truncate.
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        ramp: let guidance grow linearly over sampling.
        sampler: None for the generator's own.
        batch_size: samples made at once.
        all: kernel distance, density and coverage too.
        out: JSON file to write figures and protocol to.
        json: print the same JSON and nothing else.
        against: such a file of other samples: the differences are shown, with a warning where protocols differ.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: of sampling; features are always float32.
    """
    asked = Protocol() if protocol is None else find_protocol(protocol)
    used = asked.given(number=number, labels=labels, quantisation=quantisation)
    given = sum(source is not None for source in (data, statistics, reference_samples))
    require(given > 0, "give what to compare with: either --data or --statistics")
    require(given == 1, "give one thing to compare with: --data, --statistics or --reference_samples")
    require(seeds > 0, f"at least one block of seeds is scored, not {seeds}")
    features = extractor or used.extractor
    if features is None:
        raise UserError("give --extractor, what makes the features to compare in, or a --protocol that has one")
    earlier = None if against is None else _read(against)
    features.setup()
    device = pick_device(accelerator)
    if statistics is not None:
        real, facts = bind_statistics(statistics, features, device)
    elif reference_samples is not None:
        real, facts = bind_samples(samples_folder(reference_samples), features, device)
    else:
        assert data is not None
        real, facts = bind_data(used, data, features, reference, device)
    scorers = [Scorer(features, real, EVERY if all else USUAL, used.neighbours) for _ in range(seeds)]
    if holds_stage(samples):
        strength = None if guidance is None else Guidance(guidance, ramp)
        trainer = Trainer(
            samples.parent,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            logger=False,
            enable_progress_bar=not json,
        )
        found = _score_made(samples, prior, scorers, used, first_seed, batch_size, strength, sampler, trainer)
    else:
        found = _score_read(samples_folder(samples), scorers, device)
    if found.speaks:
        named = [scorers[0].full_names(block, found.number) for block in found.blocks]
        record = used.record(features, facts, found.number, found.format, asked)
        _report(_content(named, record), earlier, out, json)


def _score_made(
    checkpoint: Path,
    prior: Path | None,
    scorers: list[Scorer],
    protocol: Protocol,
    first_seed: int,
    batch_size: int,
    guidance: Guidance | None,
    sampler: Sampler | None,
    trainer: Trainer,
) -> Scored:
    """Score what a checkpoint makes."""
    loaded = load(checkpoint, prior)
    generator = loaded.generator
    require(generator.codec.makes == "image", f"{checkpoint} makes no pictures: evaluate a generator of pictures")
    number = NUMBER if protocol.number is None else protocol.number
    total = number * len(scorers)
    numbers = torch.arange(first_seed, first_seed + total)
    carried: dict[str, Tensor] = {}
    if protocol.labels != "generated":
        carried = chosen_labels(loaded, None, True, total)
    if protocol.labels == "random" and loaded.labels is not None:
        carried["label"] = SeededNoise(numbers, LABEL_STREAM).integers(0, loaded.labels)
    module = ScoredSampling(generator, scorers, number, protocol, guidance, sampler)
    trainer.predict(module, datamodule=Seeds(numbers.tolist(), batch_size, carried), return_predictions=False)
    return Scored(module.figures, number, "memory", trainer.is_global_zero)


def _score_read(path: Path, scorers: list[Scorer], device: torch.device) -> Scored:
    """Score samples that lie in files, in as many equal parts as there are scorers."""
    found = open_samples(path)
    count = len(scorers)
    require(found.count % count == 0, f"{found.count} samples make no {count} equal parts: choose another --seeds")
    size, figures = found.count // count, []
    for i, scorer in enumerate(scorers):
        part = found.part(i * size, (i + 1) * size)
        watch = watched(part, "scoring", -(-size // 256))
        figures.append(score(watch, scorer.reference, scorer.extractor, device, scorer.metrics, scorer.neighbours))
    return Scored(figures, size, found.format)


def _content(named: list[dict[str, float]], record: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored: figures (means over seeds), their deviations, those of each block, and the protocol."""
    means = {name: spreads.fmean(block[name] for block in named) for name in named[0]}
    content: dict[str, Any] = {"figures": means if len(named) > 1 else named[0]}
    if len(named) > 1:
        content["deviations"] = {name: spreads.stdev(block[name] for block in named) for name in means}
        content["blocks"] = named
    return content | {"protocol": record}


def _report(content: dict[str, Any], earlier: Mapping[str, Any] | None, out: Path | None, as_json: bool) -> None:
    if earlier is not None:
        same = comparable(content["protocol"], earlier.get("protocol"))
        before = earlier.get("figures", earlier)
        common = [name for name in content["figures"] if name in before]
        changes = {name: content["figures"][name] - before[name] for name in common}
        content["against"] = {"comparable": same, "differences": changes}
    if as_json:
        say(json.dumps(content, indent=1))
    else:
        _show(content)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1))


def _show(content: Mapping[str, Any]) -> None:
    deviations = content.get("deviations", {})
    changes = content.get("against", {}).get("differences", {})
    for name, value in content["figures"].items():
        deviation = f" ± {deviations[name]:.4f}" if name in deviations else ""
        change = f"  ({changes[name]:+.4f})" if name in changes else ""
        say(f"{name:<40} {value:.4f}{deviation}{change}")
    protocol = content["protocol"]
    real = protocol["reference"]
    against = f"{real.get('file') or real['set']} {real['identity'][:8]}"
    say(f"protocol {protocol['name']}: {protocol['weights']}, {protocol['number']} samples, reference {against}")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a file of figures: {error}") from error
    require(isinstance(found, dict), f"{path} holds no figures: give what `rcg evaluate --out` wrote")
    return found


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg evaluate`; --json and --all may stand without a value."""
    following = [*argv[1:], "--"]
    bare = ("--json", "--all")
    argv = [f"{word}=true" if word in bare and rest.startswith("--") else word for word, rest in zip(argv, following)]
    examples = [
        "rcg evaluate --samples runs/generator/last.ckpt --prior runs/rdm/last.ckpt --extractor ClassifierExtractor "
        "--extractor.folder runs/classifier/classifier --data.source Digits",
        "rcg evaluate --samples pictures/ --protocol adm-256 --statistics VIRTUAL_imagenet256_labeled.npz",
        "rcg evaluate --samples pictures/ --reference_samples others/ --extractor InceptionExtractor",
    ]
    call(evaluate, name, argv, examples)

"""`rcg sweep`: score a generator over settings of sampling, all on one set of representations."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcg_lightning.cli.compare import pick_device
from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol, Real, find_protocol
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import EVERY, USUAL, Scorer
from rcg_lightning.evaluation.sweep_plots import Point, best, image, plots, save_plots, sweep_table
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.sampling.loading import chosen_guidance, load, take_tile, take_weak
from rcg_lightning.sampling.scoring import NUMBER, Watched, image_of, loaded_features, score_made
from rcg_lightning.sampling.sweep_settings import Asked, Precision, Sampling, Setting, settings_of, short_hash
from rcg_lightning.stages.stage_folder import bundle_parts
from rcg_lightning.trainer import Trainer, default_precision
from rcg_lightning.types import require

SCORED = "scored.json"  # every setting ever scored in a folder, by a hash of all that its metrics depend on


class Scored:
    """The metrics of every setting scored so far, in a file that is replaced whole after each.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.records: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, and its settings are scored again") from error

    def add(self, key: str, record: dict[str, Any], write: bool = True) -> None:
        """Keep one record; of several processes one writes."""
        self.records[key] = record
        if write:
            _write(self.path, json.dumps(self.records, indent=1))


def sweep(
    checkpoint: Path,
    out: Path,
    extractor: FeatureExtractor | None = None,
    data: ImageDataModule | None = None,
    statistics: Path | None = None,
    protocol: str | None = None,
    reference: Path | None = None,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    representations: Path | None = None,
    guidance: list[float] | None = None,
    intervals: list[str] | None = None,
    steps: list[int] | None = None,
    eta: list[float] | None = None,
    ema: list[str] | None = None,
    temperature: list[float] | None = None,
    prior_temperature: list[float] | None = None,
    crossed: bool = True,
    ramp: bool | None = None,
    interval: list[float] | None = None,
    guided_channels: int | None = None,
    weak: Path | None = None,
    weak_ema: str | None = None,
    sampler: Sampler | None = None,
    number: int | None = None,
    first_seed: int = 0,
    seeds: int = 1,
    balanced: bool = False,
    all: bool = False,
    by: str = "fd",
    batch_size: int = 256,
    tile: int | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: Precision | None = None,
) -> None:
    """Score a generator at many settings of sampling: a table, plots, and the best one.

    Representations are drawn once and serve every setting. Stopped at any moment, the same command continues; with
    more values it scores only those.

    Args:
        checkpoint: of the generator.
        out: folder to write to: sweep.md, sweep.json, plots as PNG and for TensorBoard, and what was scored already.
        extractor: features to compare in; may be left out where the protocol has one.
        data: the real images.
        statistics: published reference statistics (.npz with mu and sigma) in place of data.
        protocol: adm-256, val-50k, … as of `rcg evaluate`; what is given besides changes it.
        reference: folder in which the real images' features are kept; by default in ``out``.
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: a store to draw them from, for a generator conditioned on instances.
        autoencoder: folder of what makes images of latents or tokens, for a generator of these.
        representations: a store to take conditions from instead of the prior.
        guidance: guidance scales, 1 is off.
        intervals: parts of sampling in which guidance acts, such as 0-1,0.2-0.8.
        steps: numbers of sampling steps.
        eta: DDIM's noise, 0 to 1.
        ema: names of EMA weights; "trained" for the weights themselves.
        temperature: factors of the generator's noise.
        prior_temperature: factors of the RDM's noise.
        crossed: score every combination; false varies each by itself and leaves the others as the generator has them.
        ramp: let guidance grow linearly over sampling; None for the generator's own way.
        interval: first and last progress of sampling, 0 to 1, between which guidance acts: such as 0.2,0.8.
        guided_channels: guide the first channels only.
        weak: checkpoint of a weaker model to guide away from, in the place of no condition (autoguidance).
        weak_ema: name of the weaker model's EMA weights; without --weak, of the generator's own.
        sampler: what steps, eta and temperature are changed of; None for the generator's own.
        number: samples of each setting and seed; 5000 unless the protocol says.
        first_seed: samples' seeds are first_seed, first_seed + 1, …
        seeds: score each setting so many times, on other samples, for error bars.
        balanced: generate every class equally often.
        all: kernel distance, density and coverage too.
        by: metric that decides which setting is best.
        batch_size: samples made at once; changes speed and memory alone.
        tile: samples computed together; fewer need less memory, and change the last bits. None: as trained.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: of sampling; None takes bf16-mixed on GPUs that have it and 32-true elsewhere.
    """
    named = Protocol() if protocol is None else find_protocol(protocol)
    used = named.given(number=number, labels="balanced" if balanced else None)
    count = NUMBER if used.number is None else used.number
    require(count > 1 and seeds > 0, f"a sweep takes at least 2 samples and 1 seed, not {count} and {seeds}")
    require(prior is None or representations is None, "--prior and --representations exclude each other: give one")
    axes = {
        "guidance": guidance,
        "interval": intervals,
        "steps": steps,
        "eta": eta,
        "ema": ema,
        "temperature": temperature,
        "prior_temperature": prior_temperature,
    }
    given = {name: list(values) for name, values in axes.items() if values}
    features = loaded_features(extractor, used)
    if representations is None:
        prior = prior or bundle_parts(checkpoint).get("prior")
    loaded = load(checkpoint, prior, representations is not None, autoencoder, instances)
    makes = loaded.generator.codec.makes
    require(makes == "image", f"{checkpoint} makes {makes}s, no images: sweep a generator of images")
    device = pick_device(accelerator)
    chosen = precision or (default_precision() if device.type == "cuda" else "32-true")
    asked = Asked(count, first_seed, seeds, batch_size, chosen, accelerator, devices, num_nodes)  # type: ignore[arg-type]
    take_weak(loaded.generator, weak, weak_ema)
    take_tile(loaded.generator, tile)
    base = chosen_guidance(loaded.generator, None, ramp, interval, guided_channels)
    sampling = Sampling(loaded, asked, out, prior, representations, sampler, base, balanced)
    settings = settings_of(given, sampling.own(), crossed)
    for setting in settings:
        sampling.check(setting)
    source = Real(data, statistics, None, reference or out / "reference")
    source.check_size(image_of(loaded))
    real, spec = source.bind(used, features, device)
    compared = Compared(used, features, real, spec, EVERY if all else USUAL)
    points, zero = _score_all(sampling, settings, compared, by, Scored(out / SCORED))
    if zero:
        _report(points, by, compared, used.record(features, spec, count, asked=named), out)


@dataclass(frozen=True)
class Compared:
    """How every setting is scored: by which protocol and features, against what, in which groups of metrics."""

    protocol: Protocol
    extractor: FeatureExtractor
    real: Reference
    spec: dict[str, Any]
    metrics: frozenset[str]

    def scorer(self) -> Scorer:
        """Return a new scorer."""
        return Scorer(self.extractor, self.real, self.metrics, self.protocol.neighbours)

    def depends_on(self) -> dict[str, Any]:
        """Return, as plain data, everything that metrics depend on next to the samples."""
        return {
            "extractor": self.extractor.identity,
            "reference": [self.real.identity, self.real.name, self.spec["identity"]],
            "groups": sorted(self.metrics),
            "neighbours": self.protocol.neighbours,
            "quantisation": self.protocol.quantisation,
        }


def _score_all(
    sampling: Sampling, settings: list[Setting], compared: Compared, by: str, scored: Scored
) -> tuple[list[Point], bool]:
    """Score what has not been scored yet; return all points, in the order of ``settings``, and who reports them."""
    asked = sampling.asked
    watch = Watched()
    trainer = Trainer(
        sampling.out,
        accelerator=asked.accelerator,
        devices=asked.devices,
        num_nodes=asked.num_nodes,
        precision=asked.precision,
        logger=False,
        enable_progress_bar=False,
        callbacks=[watch],
    )
    points: list[Point] = []
    for place, setting in enumerate(settings, 1):
        watch.what = words = f"[{place}/{len(settings)}] {Point(setting, (), asked.number).says()}"
        found: list[dict[str, float]] = []
        for seed in range(asked.seeds):
            inputs = {**sampling.depends_on(setting, seed), **compared.depends_on()}
            key = short_hash(inputs)
            fresh = key not in scored.records
            if fresh:
                began = time.perf_counter()
                seeds = sampling.seeds(setting, seed)
                made = score_made(sampling.module(setting, compared.scorer(), compared.protocol), seeds, trainer)
                seconds = round(time.perf_counter() - began, 2)
                record = {
                    "setting": setting,
                    "n": asked.number,
                    "metrics": made.blocks[0],
                    "seconds": seconds,
                    **inputs,
                }
                scored.add(key, record, trainer.is_global_zero)
            found.append(scored.records[key]["metrics"])
            best([Point(setting, (found[-1],), asked.number)], by)  # rejects a metric that is not there, at once
            which = f", seed {seed}" if asked.seeds > 1 else ""
            end = f"{scored.records[key]['seconds']:.1f} s" if fresh else "scored before"
            if trainer.is_global_zero:
                echo(f"{words}{which}: {by} {found[-1][by]:.4f}   ({end})")
        points.append(Point(setting, tuple(found), asked.number))
    return points, trainer.is_global_zero


def _report(points: list[Point], by: str, compared: Compared, record: dict[str, Any], out: Path) -> None:
    """Write table, metrics and plots, and say which setting is best."""
    from torch.utils.tensorboard import SummaryWriter

    winner, table = best(points, by), sweep_table(points, by)
    seeds, n = len(winner.metrics), winner.n
    held = f"{n} samples" + (f" × {seeds} seeds" if seeds > 1 else "")
    source = record["reference"]
    against = f"{source.get('file') or source['set']} {str(source['identity'])[:8]}"
    note = f"{held}, features of {record['weights']}, reference {against}, protocol {record['name']}"
    names = {kind: name for kind in winner.metrics[0] for name in compared.scorer().full_names({kind: 0.0}, n)}
    rows = [{"setting": p.setting, "n": p.n, "metrics": list(p.metrics)} for p in points]
    content = {"note": note, "by": by, "best": winner.setting, "names": names, "protocol": record, "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "sweep.json", json.dumps(content, indent=1))
    _write(out / "sweep.md", f"{note}\n\n{table}")
    drawn = {name: image(figure) for name, figure in plots(points, note).items()}
    paths = save_plots(drawn, out)
    with SummaryWriter(str(out)) as events:
        events.add_text("sweep", f"{note}\n\n{table}")
        for name, pixels in drawn.items():
            events.add_image(f"sweep/{name}", pixels, dataformats="HWC")
    echo(f"\n{table}")
    echo(f"best by {by}: {winner.says()} ({by} {winner.mean(by):.4f})")
    echo(f"table: {out / 'sweep.md'}   plots: {', '.join(path.name for path in paths) or 'none, for nothing varies'}")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg sweep --checkpoint runs/digits/seed0/representation/last.ckpt --prior runs/digits/seed0/rdm/last.ckpt "
        "--guidance 1,1.5,2,3 --number 1346 --extractor ClassifierExtractor "
        "--extractor.folder runs/digits/classifier/classifier --config digits/data --out runs/sweep",
        "rcg sweep … --steps 5,10,25 --eta 0,1                        every combination",
        "rcg sweep … --temperature 0.8,0.9,1 --prior_temperature 0.8,1 --crossed false     each by itself",
    ]
    call(sweep, name, argv, examples)

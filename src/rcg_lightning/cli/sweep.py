"""`rcg sweep`: score a generator over sampling settings, all on one set of representations."""

from pathlib import Path

from rcg_lightning.arguments import NonNegativeFloat, PositiveInt, SampleCount, Seed, Timesteps, UnitInterval
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.run_data import with_run_data
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.protocols import Protocol, RealSource, find_protocol
from rcg_lightning.evaluation.scorer import EVERY, USUAL
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.sampling.loading import chosen_guidance, load, set_tiles, set_weak_model
from rcg_lightning.sampling.scoring import NUMBER, image_of, loaded_features
from rcg_lightning.sampling.sweep import SCORED, ScoreCache, ScoringSetup, score_settings, write_sweep
from rcg_lightning.sampling.sweep_sampling import Precision, SampleRequest, SweepSampling
from rcg_lightning.sampling.sweep_settings import settings_of
from rcg_lightning.trainer import Devices, default_precision, pick_device
from rcg_lightning.types import require


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
    autoencoder_precision: FrozenPrecision | None = None,
    representations: Path | None = None,
    guidance: list[NonNegativeFloat] | None = None,
    intervals: list[str] | None = None,
    steps: list[Timesteps] | None = None,
    eta: list[UnitInterval] | None = None,
    ema: list[str] | None = None,
    temperature: list[NonNegativeFloat] | None = None,
    prior_temperature: list[NonNegativeFloat] | None = None,
    crossed: bool = True,
    ramp: bool | None = None,
    interval: list[UnitInterval] | None = None,
    guided_channels: PositiveInt | None = None,
    weak: Path | None = None,
    weak_ema: str | None = None,
    sampler: Sampler | None = None,
    number: SampleCount | None = None,
    first_seed: Seed = 0,
    seeds: PositiveInt = 1,
    balanced: bool = False,
    all: bool = False,
    by: str = "fd",
    batch_size: PositiveInt = 256,
    tile: PositiveInt | None = None,
    prior_tile: PositiveInt | None = None,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: PositiveInt = 1,
    precision: Precision | None = None,
) -> None:
    """Score a generator at many sampling settings: a table, plots, and the best setting.

    Representations are sampled once for all settings. After an interruption, the same command continues; with more
    values it scores only the new ones.

    Args:
        checkpoint: of the generator, or the folder of its run. The option's name may be left out.
        out: folder to write: sweep.md, sweep.json, plots as PNG and for TensorBoard, and a cache of scores.
        extractor: makes the features to compare; not needed if the protocol has one.
        data: the real images.
        statistics: published reference statistics (.npz with mu and sigma) in place of data.
        protocol: adm-256, val-50k, … as for `rcg evaluate`; further options change it.
        reference: folder that caches the features of the real images; by default in ``out``.
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: store from which instances are chosen at random, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, for a generator of these.
        autoencoder_precision: highest decodes in float32, high in TF32, bf16 in bf16; None is that of the training.
        representations: a store of conditions, used instead of the prior.
        guidance: guidance scales, 1 is off.
        intervals: intervals of sampling in which guidance acts, such as 0-1,0.2-0.8.
        steps: numbers of sampling steps.
        eta: DDIM's noise, 0 to 1.
        ema: names of EMA weights; "trained" for the weights without EMA.
        temperature: factors of the generator's noise.
        prior_temperature: factors of the RDM's noise.
        crossed: score every combination; false varies one setting at a time, the others at the generator's own values.
        ramp: let guidance grow linearly over sampling; None takes the generator's own.
        interval: first and last progress of sampling, 0 to 1, between which guidance acts: such as 0.2,0.8.
        guided_channels: guide the first channels only.
        weak: checkpoint of a weaker model to guide away from, instead of the null condition (autoguidance).
        weak_ema: name of the weaker model's EMA weights; without --weak, of the generator's EMA weights.
        sampler: whose steps, eta and temperature are varied; None for the generator's own.
        number: samples per setting and seed; 5000 unless the protocol has another number.
        first_seed: the samples' seeds are first_seed, first_seed + 1, …
        seeds: number of scores per setting, each on other samples, for error bars.
        balanced: generate every class equally often.
        all: also compute kernel distance, density and coverage.
        by: metric that ranks the settings.
        batch_size: affects only speed and memory.
        tile: samples computed together; fewer need less memory, and change the last bits. None: as trained, or fewer
            for few samples.
        prior_tile: the same for the prior.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: number of machines of the job.
        precision: of sampling; None takes bf16-mixed on GPUs that support it and 32-true elsewhere.
    """
    named = Protocol() if protocol is None else find_protocol(protocol)
    used = named.with_settings(number=number, labels="balanced" if balanced else None)
    count = NUMBER if used.number is None else used.number
    require(prior is None or representations is None, "--prior and --representations exclude each other: give only one")
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
    loaded = load(checkpoint, prior, representations is not None, autoencoder, instances, autoencoder_precision)
    makes = loaded.generator.codec.makes
    require(makes == "image", f"{checkpoint} makes {makes}s, not images: sweep a generator of images")
    device = pick_device(accelerator)
    chosen = precision or default_precision(accelerator)
    asked = SampleRequest(count, first_seed, seeds, batch_size, chosen, accelerator, devices, num_nodes)  # type: ignore[arg-type]
    set_weak_model(loaded.generator, weak, weak_ema)
    set_tiles(loaded, first_seed, count, tile, prior_tile)
    base = chosen_guidance(loaded.generator, None, ramp, interval, guided_channels)
    sampling = SweepSampling(loaded, asked, out, representations, sampler, base, balanced)
    settings = settings_of(given, sampling.own(), crossed)
    for setting in settings:
        sampling.check(setting)
    source = RealSource(data, statistics, None, reference or out / "reference")
    source.check_size(image_of(loaded))
    real, spec = source.bind(used, features, device)
    setup = ScoringSetup(used, features, real, spec, EVERY if all else USUAL)
    points, reports = score_settings(sampling, settings, setup, by, ScoreCache(out / SCORED), echo)
    if reports:
        echo(write_sweep(points, by, setup, used.record(features, spec, count, asked=named), out))


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg sweep --checkpoint runs/digits/seed0/representation/last.ckpt --prior runs/digits/seed0/rdm/last.ckpt "
        "--guidance 1,1.5,2,3 --number 1346 --extractor ClassifierExtractor "
        "--extractor.folder runs/digits/classifier/classifier --config digits/data --out runs/sweep",
        "rcg sweep … --steps 5,10,25 --eta 0,1                        every combination",
        "rcg sweep … --temperature 0.8,0.9,1 --prior_temperature 0.8,1 --crossed false     each by itself",
    ]
    call(sweep, name, with_run_data(argv, "--checkpoint"), examples)

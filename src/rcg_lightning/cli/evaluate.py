"""`rcg evaluate`: metrics for a checkpoint, a folder of images, an .npz or a store of samples."""

from pathlib import Path
from typing import Literal

from rcg_lightning.arguments import (
    ImageSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SampleCount,
    Seed,
    UnitInterval,
)
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.cli.run_data import with_run_data
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.protocols import Labels, Protocol, Quantisation, RealSource, find_protocol
from rcg_lightning.evaluation.records import one_format
from rcg_lightning.evaluation.results import content_of, read_content
from rcg_lightning.evaluation.sample_readers import samples_folder
from rcg_lightning.evaluation.scorer import EVERY, USUAL, Scorer
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.parzen import ParzenImages
from rcg_lightning.sampling.loading import chosen_guidance, set_tiles, set_weak_model
from rcg_lightning.sampling.sample_analysis import SampleAnalysis
from rcg_lightning.sampling.scoring import (
    NUMBER,
    SampleSource,
    SamplingProgress,
    ScoredSampling,
    finisher,
    loaded_features,
    representation_scorers,
    score_files,
    score_generated,
    seeds_to_score,
)
from rcg_lightning.trainer import Devices, Mode, Trainer, pick_device
from rcg_lightning.types import require


def evaluate(
    samples: Path,
    extractor: FeatureExtractor | None = None,
    data: ImageDataModule | None = None,
    statistics: Path | None = None,
    reference_samples: Path | None = None,
    protocol: str | None = None,
    reference: Path | None = None,
    number: SampleCount | None = None,
    first_seed: Seed = 0,
    seeds: PositiveInt = 1,
    labels: Labels | None = None,
    quantisation: Quantisation | None = None,
    resize: ImageSize | None = None,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    autoencoder_precision: FrozenPrecision | None = None,
    guidance: NonNegativeFloat | None = None,
    ramp: bool | None = None,
    interval: list[UnitInterval] | None = None,
    guided_channels: PositiveInt | None = None,
    weak: Path | None = None,
    weak_ema: str | None = None,
    ema: str | None = None,
    sampler: Sampler | None = None,
    batch_size: PositiveInt = 256,
    tile: PositiveInt | None = None,
    prior_tile: PositiveInt | None = None,
    compile: bool | Mode = False,
    all: bool = False,
    memorisation: NonNegativeInt = 0,
    memorisation_in: Literal["pixels", "features"] = "pixels",
    parzen: bool = False,
    out: Path | None = None,
    json: bool = False,
    against: Path | None = None,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: PositiveInt = 1,
    precision: str | None = None,
) -> None:
    """Score samples against real images: Fréchet distance, Inception Score, precision, recall, copies.

    Generated representations are scored against stored ones (--data.stores): rep-FD.

    Args:
        samples: a generator's checkpoint, a run's folder, a folder of images, an .npz with arr_0, or an output folder
            of `rcg sample`. The option's name may be left out.
        extractor: makes the features: InceptionExtractor for FID and IS, ClassifierExtractor or EncoderExtractor; not
            needed if the protocol has one.
        data: the real images.
        statistics: published reference statistics (.npz with mu and sigma) in place of data.
        reference_samples: other samples in place of data: a folder, an .npz or a store.
        protocol: adm-256, val-50k, train-50k, cifar10-train, icgan, digits, mnist or, for an RDM, rep-train; further
            options change it.
        reference: folder that caches the features of the real images.
        number: samples to generate for each block of seeds; 5000 unless the protocol has another number.
        first_seed: the samples' seeds are first_seed, first_seed + 1, …
        seeds: number of blocks of different seeds (for files: equal parts); mean and deviation are reported.
        labels: classes of generated samples: generated, balanced or random.
        quantisation: of generated samples: round or truncate.
        resize: resize the shorter side of images in files (--samples, --reference_samples) to this number of pixels,
            bicubic with antialias, and cut out the central square. The protocol records it.
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: store from which instances are chosen at random, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, for a generator of these.
        autoencoder_precision: highest decodes in float32, high in TF32, bf16 in bf16; None is that of the training.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        ramp: let guidance grow linearly over sampling; None takes the generator's own.
        interval: first and last progress of sampling, 0 to 1, between which guidance acts: such as 0.2,0.8.
        guided_channels: guide the first channels only.
        weak: checkpoint of a weaker model to guide away from, instead of the null condition (autoguidance).
        weak_ema: name of the weaker model's EMA weights; without --weak, of the generator's EMA weights.
        ema: name of the EMA weights to sample with; "trained" for the weights without EMA.
        sampler: None for the generator's own.
        batch_size: of sampling.
        tile: samples computed together; fewer need less memory, and change the last bits. None: as trained, or fewer
            for few samples.
        prior_tile: the same for the prior.
        compile: compile the networks that sample: true or a mode of torch.compile, such as reduce-overhead, which on
            GPUs records CUDA graphs. Results change in the last bits.
        all: also compute kernel distance, density and coverage.
        memorisation: number of samples nearest to a training image to list, and to show next to it in an image next to
            ``out``.
        memorisation_in: space of that distance: pixels, for exact copies, or features, also for shifted and changed
            copies.
        parzen: also compute the Parzen log-likelihood of evaluation images, a fifth of which choose the bandwidth.
        out: JSON file for metrics and protocol.
        json: print the same JSON and nothing else.
        against: JSON file of other samples; differences are shown, with a warning if protocols differ.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: number of machines of the job.
        precision: of sampling; that of the features is --extractor.precision.
    """
    asked = Protocol() if protocol is None else find_protocol(protocol)
    used = asked.with_settings(number=number, labels=labels, quantisation=quantisation)
    real = RealSource(data, statistics, reference_samples and samples_folder(reference_samples), reference, resize)
    analysis = SampleAnalysis(memorisation, memorisation_in, parzen)
    analysis.check(data, out)
    earlier = None if against is None else read_content(against)
    source = SampleSource.open(samples, prior, autoencoder, instances, resize, autoencoder_precision)
    size = (used.number or NUMBER) if source.files is None else source.files.count // seeds
    device = pick_device(accelerator)
    if source.of_representations:
        require(not analysis, "--memorisation and --parzen need images, not representations")
        scorers, made_by, spec = representation_scorers(source, data, seeds)
    else:
        made_by = loaded_features(extractor, used)
        analysis.check_size(source.image, size)
        real.check_size(source.image)
        compared, spec = real.bind(used, made_by, device)
        groups, image_shape = EVERY if all else USUAL, source.image if analysis else None
        scorers = [Scorer(made_by, compared, groups, used.neighbours, image_shape=image_shape) for _ in range(seeds)]
    if source.files is not None:
        one_format({"samples": source.files.format, "reference": spec.get("format")})
        found = score_files(source.files, scorers, device)
    else:
        assert source.loaded is not None
        generator = source.loaded.generator
        set_weak_model(generator, weak, weak_ema)
        set_tiles(source.loaded, first_seed, size * seeds, tile, prior_tile)
        generator.for_sampling(ema)
        strength = chosen_guidance(generator, guidance, ramp, interval, guided_channels)
        module = ScoredSampling(generator, scorers, size, finisher(used, generator), strength, sampler, ema)
        trainer = Trainer(
            samples.parent,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            compile=compile,
            logger=False,
            enable_progress_bar=False,
            callbacks=[SamplingProgress()],
        )
        seed_data = seeds_to_score(source.loaded, first_seed, size * seeds, used.labels, batch_size)
        found = score_generated(module, seed_data, trainer)
    if not found.reports:
        return
    named = [scorers[0].full_names(block, found.number) for block in found.blocks]
    images = None if data is None else ParzenImages(data)
    if images is not None and analysis:
        named = [block | analysis.likelihood(shown, images, device) for block, shown in zip(named, found.images)]
    content = content_of(named, used.record(made_by, spec, found.number, found.format, asked, found.resize))
    if images is not None:
        content |= analysis.rule(images)
    if data is not None and out is not None and not isinstance(made_by, str):
        content |= analysis.closest(found.images, data, made_by, device, out)
    report(content, out, json, earlier)


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg evaluate --samples runs/generator/last.ckpt --prior runs/rdm/last.ckpt --extractor ClassifierExtractor "
        "--extractor.folder runs/classifier/classifier --data.source Digits",
        "rcg evaluate runs/my_images --extractor ClassifierExtractor --extractor.folder classifier",
        "rcg evaluate --samples images/ --protocol adm-256 --statistics VIRTUAL_imagenet256_labeled.npz",
        "rcg evaluate --samples images/ --reference_samples others/ --extractor InceptionExtractor",
        "rcg evaluate --samples runs/rdm/last.ckpt --config digits/data --data.stores [runs/store]",
    ]
    call(evaluate, name, with_run_data(argv, "--samples"), examples)

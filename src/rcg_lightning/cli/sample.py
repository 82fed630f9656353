"""`rcg sample`: generate from a checkpoint, by seed."""

from pathlib import Path

import torch
from torch import Tensor

from rcg_lightning.arguments import NonNegativeFloat, PositiveInt, SampleNumber, Seed, UnitInterval
from rcg_lightning.artifacts import check_writable, fingerprint
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call, with_option
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.seed_data_module import SeedDataModule, positions_of
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.generation import first_samples, samples_identity, write_images, write_samples
from rcg_lightning.sampling.image_conditions import Interpolation, interpolated, variations
from rcg_lightning.sampling.loading import (
    Loaded,
    chosen_guidance,
    chosen_labels,
    condition_key,
    load,
    set_tiles,
    set_weak_model,
    stored_representations,
)
from rcg_lightning.trainer import Devices, Mode, Trainer
from rcg_lightning.types import require

USUAL, OF_IMAGES = 64, 9  # samples: in total; of each given image, or from one to another


def sample(
    checkpoint: Path,
    out: Path | None = None,
    number: SampleNumber | None = None,
    first_seed: Seed = 0,
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
    sampler: Sampler | None = None,
    classes: list[int] | None = None,
    balanced: bool = False,
    representations: Path | None = None,
    variations_of: list[Path] | None = None,
    interpolate: list[Path] | None = None,
    interpolation: Interpolation = "slerp",
    encoder: Encoder | None = None,
    png: bool = True,
    npz: bool = False,
    grid: bool = True,
    batch_size: PositiveInt = 256,
    tile: PositiveInt | None = None,
    prior_tile: PositiveInt | None = None,
    compile: bool | Mode = False,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: PositiveInt = 1,
    precision: str | None = None,
) -> None:
    """Generate images from seeds: unconditional, by class, as variations of images, or as an interpolation of two.

    A seed determines its sample for any batch size and number of processes. After an interruption, the same command
    continues. The checkpoint of an RDM gives a store of representations.

    Args:
        checkpoint: of the generator; or the folder of a run or of one of its steps, a run's name in runs/, or a
            bundle, which hold the other models too. The option's name may be left out: rcg sample runs/digits.
        out: folder to write: a store of the samples, and the files chosen below. Where it is not given, it lies in the
            run's folder.
        number: of samples: in total, for each image of --variations-of, or from one image to the other. None: 64, or 9
            of images.
        first_seed: seeds are first_seed, first_seed + 1, …
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: store from which instances are chosen at random, for a generator conditioned on instances: of the
            training images, of fewer (`rcg instances`), or of other images.
        autoencoder: folder of the network that decodes latents or tokens, for a generator of these.
        autoencoder_precision: highest decodes in float32, high in TF32, bf16 in bf16; None is that of the training.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        ramp: let guidance grow linearly over sampling, as MAGE does; None takes the generator's own.
        interval: first and last progress of sampling, 0 to 1, between which guidance acts: such as 0.2,0.8.
        guided_channels: guide the first channels only (DiT's official sampling: 3 of 4).
        weak: checkpoint of a weaker model to guide away from, instead of the null condition (autoguidance).
        weak_ema: name of the weaker model's EMA weights; without --weak, of the generator's EMA weights.
        sampler: None for the generator's own.
        classes: labels to generate, in turn, by the generator or by a class-conditional RDM.
        balanced: generate every class equally often.
        representations: a store of conditions, used instead of the prior; its rows in order, repeated as needed.
        variations_of: images of which to make variations; they come first in the rows of the grid.
        interpolate: two images to interpolate between. All samples share one seed.
        interpolation: slerp, on the sphere of the representations, or lerp, on a straight line.
        encoder: with which the generator was trained, for --variations-of and --interpolate; a run and a bundle hold
            it.
        png: write every sample as PNG.
        npz: write samples.npz with arr_0, uint8 (N, H, W, C).
        grid: write grid.png.
        batch_size: affects only speed and memory.
        tile: samples computed together; fewer need less memory, and change the last bits. None: as trained, or fewer
            for few samples.
        prior_tile: the same for the prior.
        compile: compile the networks that sample: true or a mode of torch.compile, such as reduce-overhead, which on
            GPUs records CUDA graphs. Results change in the last bits.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: number of machines of the job.
        precision: None takes bf16-mixed on GPUs that support it and 32-true elsewhere.
    """
    require(not (variations_of and interpolate), "--variations-of and --interpolate exclude each other: give only one")
    given = bool(variations_of or interpolate or representations)
    loaded = load(checkpoint, prior, given, autoencoder, instances, autoencoder_precision)
    generator, key = loaded.generator, condition_key(loaded.generator)
    number = number or (OF_IMAGES if variations_of or interpolate else USUAL)
    seeds = torch.arange(first_seed, first_seed + number)
    carried: dict[str, Tensor] = {}
    kind, drawn = "samples", first_samples
    if variations_of:
        found = variations(generator, encoder or loaded.encoder, variations_of, number)
        carried[key], kind, drawn = found.conditions, "variations", found.grid
        seeds = seeds.repeat(len(variations_of))
    elif interpolate:
        found = interpolated(generator, encoder or loaded.encoder, interpolate, number, interpolation)
        carried[key], kind, drawn = found.conditions, "interpolation", found.grid
        seeds = torch.full((number,), first_seed)
    elif representations is not None:
        carried[key] = stored_representations(generator, representations, number)
    carried |= chosen_labels(loaded, classes, balanced, len(seeds))
    set_tiles(loaded, int(positions_of(seeds)[0]), len(seeds), tile, prior_tile)
    data = SeedDataModule(seeds.tolist(), batch_size, carried, generator.tile)
    if sampler is not None:
        generator.check_sampler(sampler)
    set_weak_model(generator, weak, weak_ema)
    strength = chosen_guidance(generator, guidance, ramp, interval, guided_channels)
    idle = generator.weak_identity is not None and guidance is None and strength.scale == 1
    require(not idle, "a weaker model does nothing at guidance scale 1: give --guidance, such as 1.5")
    trainer = Trainer(
        out or own_folder(loaded),
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        compile=compile,
        logger=False,
    )
    if out is None:
        out = (
            own_folder(loaded) / f"{kind}-{fingerprint(samples_identity(loaded, data, strength, sampler, trainer))[:8]}"
        )
    if trainer.is_global_zero and loaded.parts is not None and loaded.parts.generator != checkpoint:
        echo(loaded.parts.lines())
    store = write_samples(loaded, data, out / "store", trainer, strength, sampler)
    if not trainer.is_global_zero:
        return
    if generator.codec.makes == "image":
        write_images(store, out, seeds.tolist(), png, npz, drawn if grid else None)
        echo(f"{out}: {store.size} samples")
    else:
        echo(f"{store.path}: a store of {store.size} {generator.codec.makes}s")


def own_folder(loaded: Loaded) -> Path:
    """Return the folder of a run's samples; UserError where only a checkpoint is known."""
    results = loaded.parts.results if loaded.parts is not None else None
    if results is None:
        raise UserError("--out is missing: give the folder to write, or a run's folder instead of a checkpoint")
    check_writable(results)
    return results


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg sample runs/digits --guidance 2",
        "rcg sample runs/digits --variations-of image.png",
        "rcg sample runs/digits --interpolate one.png other.png",
        "rcg sample runs/digits/seed0/class --classes 3,5             of the class-conditional generator",
        "rcg sample --checkpoint runs/generator/last.ckpt --prior runs/rdm/last.ckpt --number 64 --out runs/samples",
        "rcg sample … --guidance 2 --interval 0.2,0.8                 guided in the middle of sampling",
        "rcg sample … --guidance 2 --weak runs/generator/early.ckpt   guided by a weaker model",
        "rcg sample … --autoencoder runs/tokenizer/tokenizer        from a generator of tokens or latents",
        "rcg sample … --instances runs/other_store                   neighbours of other images",
        "rcg sample … --variations-of image.png --encoder TrainedEncoder --encoder.folder runs/encoder/encoder",
    ]
    call(sample, name, with_option(argv, "--checkpoint"), examples, folders=("out",))

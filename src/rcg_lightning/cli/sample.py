"""`rcg sample`: generate from a checkpoint, by seed."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcg_lightning.artifacts import fingerprint, replacing
from rcg_lightning.callbacks.prediction_writer import PredictionWriter, predict_store
from rcg_lightning.cli.parsing import call, echo, progress_bar
from rcg_lightning.config import describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.interpolation import lerp, slerp
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.decode import Unreadable, decode
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.transforms import CenterCrop
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.image_grid import image_grid, save_images, save_png
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.loading import (
    Loaded,
    chosen_guidance,
    chosen_labels,
    condition_key,
    load,
    same_encoder,
    stored_representations,
    take_tile,
    take_weak,
)
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import GuidedSampling
from rcg_lightning.trainer import Mode, Trainer
from rcg_lightning.types import require


def sample(
    checkpoint: Path,
    out: Path,
    number: int = 64,
    first_seed: int = 0,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    guidance: float | None = None,
    ramp: bool | None = None,
    interval: list[float] | None = None,
    guided_channels: int | None = None,
    weak: Path | None = None,
    weak_ema: str | None = None,
    sampler: Sampler | None = None,
    classes: list[int] | None = None,
    balanced: bool = False,
    representations: Path | None = None,
    like: list[Path] | None = None,
    between: list[Path] | None = None,
    path: Literal["slerp", "lerp"] = "slerp",
    encoder: Encoder | None = None,
    png: bool = True,
    npz: bool = False,
    grid: bool = True,
    batch_size: int = 256,
    tile: int | None = None,
    compile: bool | Mode = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
) -> None:
    """Generate images from seeds: unconditionally, of given classes, like given images, or between two.

    A seed names a sample: it is the same for any batch size and number of processes. Stopped at any moment, the same
    command continues. From an RDM's checkpoint it writes a store of representations.

    Args:
        checkpoint: of the generator.
        out: folder to write to: a store of the samples, and what is chosen below.
        number: samples to make; variations of each image with --like, images on the way with --between.
        first_seed: seeds are first_seed, first_seed + 1, …
        prior: checkpoint of the RDM, for a generator conditioned on representations.
        instances: a store of them to draw from, for a generator conditioned on instances: of the training images, of
            fewer (`rcg instances`), or of other images.
        autoencoder: folder of what makes images of latents or tokens, for a generator of these.
        guidance: guidance scale, 1 is off; None takes the generator's own.
        ramp: let guidance grow linearly over sampling, as MAGE does; None for the generator's own way.
        interval: first and last progress of sampling, 0 to 1, between which guidance acts: such as 0.2,0.8.
        guided_channels: guide the first channels only (DiT's official sampling: 3 of 4).
        weak: checkpoint of a weaker model to guide away from, in the place of no condition (autoguidance).
        weak_ema: name of the weaker model's EMA weights; without --weak, of the generator's own.
        sampler: None for the generator's own.
        classes: labels to generate, in turn; a class-conditional RDM passes them on to the generator.
        balanced: generate every class equally often.
        representations: a store to take conditions from instead of the prior; its rows in order, over and over.
        like: images to make variations of; needs --encoder.
        between: two images to interpolate between; needs --encoder. One noise serves all.
        path: from one to the other on the sphere that representations lie on, or straight.
        encoder: the one that the generator's representations came from.
        png: write every sample as PNG.
        npz: write samples.npz with arr_0, uint8 (N, H, W, C).
        grid: write grid.png.
        batch_size: samples made at once; changes speed and memory alone.
        tile: samples computed together; fewer need less memory, and change the last bits. None: as trained.
        compile: compile the networks that sample: true or a mode of torch.compile, such as reduce-overhead, which on
            GPUs records CUDA graphs. Results change in the last bits.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: machines, where the job was started on several.
        precision: None takes bf16-mixed on GPUs that have it and 32-true elsewhere.
    """
    require(number > 0, f"--number is at least 1, not {number}")
    loaded = load(checkpoint, prior, bool(like or between or representations), autoencoder, instances)
    generator = loaded.generator
    take_tile(generator, tile)
    seeds = torch.arange(first_seed, first_seed + number)
    carried: dict[str, Tensor] = {}
    if like or between:
        carried[condition_key(generator)] = _from_images(generator, encoder, like, between, number, path)
        seeds = seeds.repeat(len(like)) if like else torch.full((number,), first_seed)
    elif representations is not None:
        carried[condition_key(generator)] = stored_representations(generator, representations, number)
    carried |= chosen_labels(loaded, classes, balanced, len(seeds))
    data = SeedDataModule(seeds.tolist(), batch_size, carried)
    if sampler is not None:
        generator.checked(sampler)
    take_weak(generator, weak, weak_ema)
    strength = chosen_guidance(generator, guidance, ramp, interval, guided_channels)
    idle = generator.weak_identity is not None and guidance is None and strength.scale == 1
    require(not idle, "a weaker model does nothing at guidance scale 1: give --guidance, such as 1.5")
    identity = _identity(loaded, strength, sampler, seeds, carried)
    # shards do not depend on the batch size, so that neither does the store
    writer = StoreWriter(out / "store", len(seeds), 1, 16 * generator.tile, identity)
    trainer = Trainer(
        out,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        compile=compile,
        logger=False,
        callbacks=[PredictionWriter(writer)],
    )
    data.only(writer.pending(trainer.global_rank, trainer.world_size))
    store = predict_store(trainer, GuidedSampling(generator, strength, sampler), data, writer)
    if trainer.is_global_zero:
        if generator.codec.makes == "image":
            _write_images(store, out, seeds, png, npz, grid)
            echo(f"{out}: {store.size} samples")
        else:
            echo(f"{store.path}: a store of {store.size} {generator.codec.makes}s")


def _from_images(
    generator: Generator,
    encoder: Encoder | None,
    like: list[Path] | None,
    between: list[Path] | None,
    n: int,
    path: str,
) -> Tensor:
    """Representations of given images, repeated for variations or joined by a path."""
    if encoder is None:
        raise UserError("--like and --between need --encoder, the one that the generator's representations came from")
    same_encoder(generator, encoder.identity, "--encoder")
    require(not (like and between), "--like and --between exclude each other: give one of them")
    require(not between or len(between) == 2, "--between takes two images")
    images = like or between or []
    assert generator.spec is not None
    rows = encoder(torch.cat([_read(image, generator.spec.image) for image in images]))
    if like:
        return rows.repeat_interleave(n, dim=0)
    t = torch.linspace(0, 1, n)
    return slerp(rows[0], rows[1], t) if path == "slerp" else lerp(rows[0], rows[1], t)


def _read(image: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read a image as the generator's data would have it: (1, C, H, W) in [0, 1]."""
    channels, height, width = shape
    require(height == width, f"images to be encoded are square here, the generator's are {height}x{width}")
    try:
        decoded = decode(image.read_bytes(), channels)
    except (OSError, Unreadable) as error:
        raise UserError(f"{image} cannot be read as a image ({error}): give another") from error
    return CenterCrop(height)(decoded)[None] / 255


def _identity(
    loaded: Loaded, guidance: Guidance, sampler: Sampler | None, seeds: Tensor, carried: dict[str, Tensor]
) -> dict[str, object]:
    """Everything that the samples depend on: a store of other samples is rejected, one just begun is continued."""
    generator = loaded.generator
    settings = [describe(guidance), describe(sampler), sorted(carried), generator.tile]
    values = [rows.numpy().tobytes() for rows in (seeds, *(carried[name] for name in sorted(carried)))]
    representation = generator.spec.identities.get("representation") if generator.spec else None
    autoencoder = getattr(generator.codec, "identity", None)
    return {
        "dataset": "samples",
        "split": "samples",
        "transform": "samples",
        "generator": generator.identity,
        "prior": loaded.prior.identity if loaded.prior else None,
        **({"instances": loaded.instances.identity} if loaded.instances else {}),
        **({"autoencoder": autoencoder} if autoencoder else {}),
        **({"weak": generator.weak_identity} if generator.weak_identity else {}),
        "settings": fingerprint(settings, values),
        **({"representation": representation} if generator.codec.makes == "representation" else {}),
    }


def _write_images(store: Store, out: Path, seeds: Tensor, png: bool, npz: bool, grid: bool) -> None:
    samples = open_samples(store.path)
    if png:
        names = (f"{i:06d}-seed{seed}.png" for i, seed in enumerate(seeds.tolist()))
        save_images(progress_bar(samples, "writing", -(-len(seeds) // 256)), out / "png", names)
    if npz:
        with replacing(out / "samples.npz") as draft, open(draft, "wb") as file:
            np.savez(file, arr_0=store.whole("image")[:, 0])
    if grid:
        save_png(Image.fromarray(image_grid(samples.first(100), 10)), out / "grid.png")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg sample --checkpoint runs/generator/last.ckpt --prior runs/rdm/last.ckpt --number 64 --out runs/samples",
        "rcg sample … --guidance 2 --interval 0.2,0.8                 guided in the middle of sampling",
        "rcg sample … --guidance 2 --weak runs/generator/early.ckpt   guided by a weaker model",
        "rcg sample … --autoencoder runs/tokenizer/tokenizer        from a generator of tokens or latents",
        "rcg sample … --classes 3,5                                   by a class-conditional RDM",
        "rcg sample … --instances runs/other_store                   neighbours of other images",
        "rcg sample … --like image.png --encoder TrainedEncoder --encoder.folder runs/encoder/encoder",
        "rcg sample … --between one.png other.png --number 9 --encoder …",
    ]
    call(sample, name, argv, examples)

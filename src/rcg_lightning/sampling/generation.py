"""Samples, written as a store by any number of processes (an interrupted one is continued), and as image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from rcg_lightning.artifacts import fingerprint, replacing
from rcg_lightning.callbacks.prediction_writer import predict_store
from rcg_lightning.config import describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.evaluation.image_grid import image_grid, save_images, save_png
from rcg_lightning.evaluation.sample_readers import Samples, open_samples
from rcg_lightning.sampling.loading import Loaded
from rcg_lightning.stages.sampling import GuidedSampling
from rcg_lightning.trainer import Trainer

Grid = Callable[[Samples], Image.Image]  # draws samples
SHARD_ROWS = 1024  # samples in a shard, in whole tiles: an interruption loses a shard for each process


def write_samples(
    loaded: Loaded,
    seeds: SeedDataModule,
    folder: Path,
    trainer: Trainer,
    guidance: Guidance,
    sampler: Sampler | None = None,
) -> Store:
    """Write a store with a generator's samples of ``seeds``; an unfinished store of the same settings is continued.

    Raises:
        UserError: the folder holds other samples.
    """
    generator = loaded.generator
    identity = samples_identity(loaded, seeds, guidance, sampler, trainer)
    # shards do not depend on the batch size, so the store does not either
    shard_rows = min(16, -(-SHARD_ROWS // generator.tile)) * generator.tile
    writer = StoreWriter(folder, len(seeds), 1, shard_rows, identity)
    seeds.only(writer.pending(trainer.global_rank, trainer.world_size))
    return predict_store(trainer, GuidedSampling(generator, guidance, sampler), seeds, writer)


def samples_identity(
    loaded: Loaded, seeds: SeedDataModule, guidance: Guidance, sampler: Sampler | None, trainer: Trainer
) -> dict[str, object]:
    """Describe all inputs of samples; a store with another identity is rejected, an unfinished one is continued."""
    generator = loaded.generator
    carried = seeds.dataset.carried
    tiles = [generator.tile, *([] if loaded.prior is None else [loaded.prior.tile])]
    settings = [describe(guidance), describe(sampler), sorted(carried), *tiles]
    values = [rows.numpy().tobytes() for rows in (seeds.dataset.seeds, *(carried[name] for name in sorted(carried)))]
    identity: dict[str, object] = {
        "dataset": "samples",
        "split": "samples",
        "transform": "samples",
        "generator": generator.identity,
        "prior": loaded.prior.identity if loaded.prior else None,
        "settings": fingerprint(settings, values),
    }
    if generator.codec.makes == "representation":
        identity["representation"] = generator.spec.identities.get("representation") if generator.spec else None
    optional = {
        "instances": loaded.instances and loaded.instances.identity,
        "autoencoder": getattr(generator.codec, "identity", None),
        "weak": generator.weak_identity,
        "precision": None if trainer.precision == "32-true" else trainer.precision,
    }
    return identity | {name: value for name, value in optional.items() if value}


def write_images(store: Store, out: Path, seeds: list[int], png: bool, npz: bool, grid: Grid | None) -> None:
    """Write the images of a store, as requested, as PNG files, samples.npz (``arr_0``, (N, H, W, C)) and grid.png."""
    samples = open_samples(store.path)
    if png:
        names = (f"{i:06d}-seed{seed}.png" for i, seed in enumerate(seeds))
        batches = tqdm(samples, "writing", -(-len(seeds) // 256), delay=3, leave=False)
        save_images(batches, out / "png", names)
    if npz:
        with replacing(out / "samples.npz") as draft, open(draft, "wb") as file:
            np.savez(file, arr_0=store.whole("image")[:, 0])
    if grid is not None:
        save_png(grid(samples), out / "grid.png")


def first_samples(samples: Samples) -> Image.Image:
    """Draw the first hundred samples."""
    return Image.fromarray(image_grid(samples.first(100), 10))

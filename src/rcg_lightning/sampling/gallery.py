"""Images of what a generator has learned: samples, variations, interpolations, and the nearest training images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcg_lightning.conditions.joint import has
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.interpolation import slerp
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_split import fixed_subset
from rcg_lightning.data.seed_data_module import positions_of
from rcg_lightning.data.store import Store
from rcg_lightning.evaluation.image_grid import image_grid, save_png
from rcg_lightning.evaluation.nearest_images import closest_matches, nearest_images_grid
from rcg_lightning.evaluation.reference import real_images
from rcg_lightning.sampling.loading import Loaded, condition_key, same_encoder
from rcg_lightning.types import require, to_uint8

COLUMNS, SAMPLES, ROWS, NEAREST = 8, 64, 6, 8


class Gallery:
    """Images of one generator, drawn one after the other.

    Args:
        loaded: generator with its prior or instances; these are needed for unconditional samples alone.
        data: the run's images, and the stores of their representations.
        guidance: of all samples.
        device: where to sample.
    """

    def __init__(self, loaded: Loaded, data: ImageDataModule, guidance: Guidance, device: torch.device) -> None:
        data.prepare_data()
        makes = loaded.generator.codec.makes
        require(makes == "image", f"a gallery shows images, and this generator makes {makes}s")
        self.data, self.guidance, self.device = data, guidance, device
        self.generator, self.key = loaded.generator.to(device), condition_key(loaded.generator)

    def write(self, out: Path, samples: Tensor | None) -> Iterator[str]:
        """Write samples.png and nearest.png; variations.png and interpolation.png where representations condition.

        The names are yielded as the files are written.

        Args:
            out: folder to write to.
            samples: of the generator, uint8 (n, C, H, W); None samples 64.
        """
        samples = self._sampled(torch.arange(SAMPLES)) if samples is None else samples
        images = {"samples": lambda: self._grid(samples[:SAMPLES], COLUMNS), "nearest": lambda: self._nearest(samples)}
        store = self._store()
        if store is not None:
            images["variations"] = lambda: self._variations(store)
            images["interpolation"] = lambda: self._interpolation(store)
        for name, draw in images.items():
            save_png(draw(), out / f"{name}.png")
            yield name

    def _grid(self, images: Tensor, columns: int) -> Image.Image:
        return Image.fromarray(image_grid(images, columns))

    def _store(self) -> Store | None:
        """Return the store of the evaluation images' representations, if the generator is conditioned on them."""
        if not has(self.generator.condition, RepresentationCondition):
            return None
        store = self.data.columns("eval").get("representation")
        if store is not None:
            same_encoder(self.generator, store.identity.get("representation"), "--data.eval_stores")
        return store

    def _variations(self, store: Store) -> Image.Image:
        index = fixed_subset(store.size, ROWS)
        rows = self._rows(store, index).repeat_interleave(COLUMNS, dim=0)
        made = self._sampled(torch.arange(len(rows)), rows).unflatten(0, (len(index), COLUMNS))
        shown = torch.cat([self._images(index)[:, None], made], dim=1)
        return self._grid(shown.flatten(0, 1), COLUMNS + 1)

    def _interpolation(self, store: Store) -> Image.Image:
        """Draw rows of samples between two evaluation images, which stand at their ends; a row has one seed."""
        index = fixed_subset(store.size, 2 * ROWS)
        index = index[: len(index) // 2 * 2]
        first, last = self._rows(store, index).chunk(2)
        ends = self._images(index).chunk(2)
        weights = torch.linspace(0, 1, COLUMNS)
        rows = torch.cat([slerp(one, other, weights) for one, other in zip(first, last)])
        seeds = torch.arange(len(first)).repeat_interleave(COLUMNS)
        made = self._sampled(seeds, rows).unflatten(0, (len(first), COLUMNS))
        shown = torch.cat([ends[0][:, None], made, ends[1][:, None]], dim=1)
        return self._grid(shown.flatten(0, 1), COLUMNS + 2)

    def _nearest(self, samples: Tensor) -> Image.Image:
        found = closest_matches(samples, real_images(self.data, "train"), NEAREST, None, self.device)
        return nearest_images_grid(found)

    def _rows(self, store: Store, index: np.ndarray) -> Tensor:
        return torch.from_numpy(store.read("representation", index)).float()

    def _images(self, index: np.ndarray) -> Tensor:
        return torch.cat(list(real_images(self.data, "eval", index)))

    def _sampled(self, seeds: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return samples, uint8 (n, C, H, W), of seeds (n,) and their conditions (n, R), if any."""
        batch: Any = {"seed": seeds, "position": positions_of(seeds)}
        given = {} if rows is None else {self.key: rows}
        return to_uint8(self.generator.sample(batch | given, self.guidance)).cpu()

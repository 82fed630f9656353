"""Analyses of individual samples: the closest ones next to training images, and a Parzen-window likelihood."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.evaluation.image_grid import save_png
from rcg_lightning.evaluation.nearest_images import closest_matches, nearest_images_grid
from rcg_lightning.evaluation.reference import real_images
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.parzen import BANDWIDTHS, ParzenImages
from rcg_lightning.metrics.stored_images import MAX_STORED_BYTES
from rcg_lightning.types import require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleAnalysis:
    """The requested analyses.

    Attributes:
        memorisation: number of closest samples to show; 0 for none.
        space: of the distance, pixels or features.
        parzen: whether to compute a Parzen-window likelihood.
    """

    memorisation: int = 0
    space: Literal["pixels", "features"] = "pixels"
    parzen: bool = False

    def __bool__(self) -> bool:
        return bool(self.memorisation or self.parzen)

    def check(self, data: ImageDataModule | None, out: Path | None) -> None:
        """Raise a UserError where an analysis lacks an input."""
        require(self.memorisation >= 0, f"--memorisation is the number of samples to show, not {self.memorisation}")
        require(
            not self.memorisation or out is not None, "--memorisation writes an image next to --out: give --out as well"
        )
        require(data is not None or not self, "--memorisation and --parzen need the real images: give --data")

    def check_size(self, shape: tuple[int, ...], number: int) -> None:
        """Raise a UserError where all ``number`` samples (C, H, W) are needed but too many to store."""
        require(
            not self.parzen or number * math.prod(shape) <= MAX_STORED_BYTES,
            f"{number} samples of {shape} are too many for Parzen windows, which store all of them: take fewer",
        )

    def likelihood(self, samples: Tensor, real: ParzenImages, device: torch.device) -> dict[str, float]:
        """Return the Parzen metrics of a block of samples (n, C, H, W) by full name; empty if not requested.

        They include the metrics of as many training images, scored like samples.
        """
        if not self.parzen:
            return {}
        count = len(real.data.images("eval"))
        require(
            count * samples[0].numel() <= MAX_STORED_BYTES,
            f"{count} evaluation images of {tuple(samples.shape[1:])} are too many for Parzen windows",
        )
        found = real.metrics(samples.to(device))
        return {metric_name(name, "pixels", len(samples), "eval"): value for name, value in found.items()}

    def rule(self, real: ParzenImages) -> dict[str, Any]:
        """Describe how the bandwidth was chosen, for the results; empty if no likelihood was requested."""
        if not self.parzen:
            return {}
        chosen = {"validation": len(real.validation), "test": len(real.test), "bandwidths": list(BANDWIDTHS)}
        source = (
            "training images held back for validation"
            if real.data.has_validation
            else "evaluation images that are not scored"
        )
        rule = f"the bandwidth under which the validation images, {source}, are most probable"
        return {"parzen": chosen | {"rule": rule}}

    def closest(
        self,
        blocks: Sequence[Tensor],
        data: ImageDataModule,
        extractor: FeatureExtractor,
        device: torch.device,
        out: Path,
    ) -> dict[str, Any]:
        """Write an image of the closest samples next to ``out``, and return their positions; empty if not requested.

        Samples are numbered through all ``blocks``.
        """
        if not self.memorisation:
            return {}
        samples = torch.cat(list(blocks))
        by = extractor if self.space == "features" else None
        found = closest_matches(samples, real_images(data, "train"), self.memorisation, by, device)
        image = out.with_name(f"{out.stem}-closest.png")
        save_png(nearest_images_grid(found), image)
        rows = [{"sample": one.sample, "training": one.training, "distance": one.distance} for one in found]
        return {"closest": {"in": self.space, "of": len(samples), "image": image.name, "rows": rows}}

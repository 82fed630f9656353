"""What `rcg evaluate` makes of the samples themselves: the closest ones beside training pictures, Parzen windows."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.data.images import ImageData
from rcg_lightning.evaluation.extractors import FeatureExtractor
from rcg_lightning.evaluation.kept import BYTES_KEPT
from rcg_lightning.evaluation.memorisation import closest_matches, matches_picture
from rcg_lightning.evaluation.metrics import metric_name
from rcg_lightning.evaluation.parzen import BANDWIDTHS, ParzenPictures
from rcg_lightning.evaluation.reference import real_pictures
from rcg_lightning.types import require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfSamples:
    """What was asked for.

    Attributes:
        memorisation: how many of the closest samples to show; 0 for none.
        space: what they are close in, pixels or features.
        parzen: whether to take a Parzen-window likelihood.
    """

    memorisation: int = 0
    space: Literal["pixels", "features"] = "pixels"
    parzen: bool = False

    def __bool__(self) -> bool:
        return bool(self.memorisation or self.parzen)

    def check(self, data: ImageData | None, out: Path | None) -> None:
        """Raise a UserError where what was asked for lacks something."""
        require(self.memorisation >= 0, f"--memorisation is a number of samples to show, not {self.memorisation}")
        require(not self.memorisation or out is not None, "--memorisation writes a picture beside --out: give it, too")
        require(data is not None or not self, "--memorisation and --parzen need the real pictures: give --data")

    def check_size(self, shape: tuple[int, ...], number: int) -> None:
        """Raise a UserError where samples (C, H, W), so many in a block, cannot all be kept and all are needed."""
        require(
            not self.parzen or number * math.prod(shape) <= BYTES_KEPT,
            f"{number} samples of {shape} are too many for Parzen windows, which hold all of them: take fewer",
        )

    def likelihood(self, samples: Tensor, real: ParzenPictures, device: torch.device) -> dict[str, float]:
        """Return the Parzen figures of a block of samples (n, C, H, W) by full names; none where not asked for.

        Beside them stand those that as many training pictures get in the samples' place.
        """
        if not self.parzen:
            return {}
        count = len(real.data.pictures("heldout"))
        require(
            count * samples[0].numel() <= BYTES_KEPT,
            f"{count} held-out pictures of {tuple(samples.shape[1:])} are too many for Parzen windows",
        )
        found = real.figures(samples.to(device))
        return {metric_name(name, "pixels", len(samples), "heldout"): value for name, value in found.items()}

    def rule(self, real: ParzenPictures) -> dict[str, Any]:
        """Return how the bandwidth was chosen, for what is stored; nothing where no likelihood was asked for."""
        if not self.parzen:
            return {}
        chosen = {"validation": len(real.validation), "test": len(real.test), "bandwidths": list(BANDWIDTHS)}
        apart = "training pictures that are held back" if real.data.chooses else "held-out pictures that are not scored"
        rule = f"the bandwidth under which the validation pictures, {apart}, are the most probable"
        return {"parzen": chosen | {"rule": rule}}

    def closest(
        self, blocks: Sequence[Tensor], data: ImageData, extractor: FeatureExtractor, device: torch.device, out: Path
    ) -> dict[str, Any]:
        """Write the picture of the closest samples beside ``out``, and return which they are; nothing if not asked for.

        Samples are numbered through all ``blocks``.
        """
        if not self.memorisation:
            return {}
        samples = torch.cat(list(blocks))
        by = extractor if self.space == "features" else None
        found = closest_matches(samples, real_pictures(data, "train"), self.memorisation, by, device)
        picture = out.with_name(f"{out.stem}-closest.png")
        out.parent.mkdir(parents=True, exist_ok=True)
        matches_picture(found).save(picture)
        rows = [{"sample": one.sample, "training": one.training, "distance": one.distance} for one in found]
        return {"closest": {"in": self.space, "of": len(samples), "picture": picture.name, "rows": rows}}

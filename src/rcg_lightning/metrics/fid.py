"""The Fréchet distance of two sets of features, from their moments; with Inception's features it is the FID."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.array_files import read_npz
from rcg_lightning.artifacts import replacing
from rcg_lightning.core.frechet import frechet_distance
from rcg_lightning.types import require


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (d,) and unbiased covariance (d, d), float64, of the features of ``count`` images (None: unknown)."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    identity: str | None = None  # of the extractor that made the features

    def cpu(self) -> "Moments":
        """Return a copy on the CPU."""
        return replace(self, mean=self.mean.cpu(), covariance=self.covariance.cpu())

    def save(self, path: Path) -> None:
        """Write an .npz with mu and sigma (float64, the usual names), and with count and identity where known."""
        arrays: dict[str, Any] = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        extra = {"count": self.count, "identity": self.identity}
        arrays |= {name: np.asarray(value) for name, value in extra.items() if value is not None}
        with replacing(path) as draft, open(draft, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, suffix: str = "") -> "Moments":
        """Read an .npz with mu (d,) and sigma (d, d), such as the statistics files that papers publish.

        Args:
            path: the file.
            suffix: ``_s`` reads mu_s and sigma_s instead, of the spatial features of sFID.

        Raises:
            UserError: the file is missing, holds something else, or its shapes do not fit.
        """
        names = f"mu{suffix}", f"sigma{suffix}"
        require(path.is_file(), f"no reference statistics at {path}: correct the path, or make them first")
        found = read_npz(path, (*names, "count", "identity"), "reference statistics")
        absent = " and ".join(name for name in names if name not in found)
        require(not absent, f"{path} does not hold {absent}, but mu and sigma are needed: is it a file of statistics?")
        real = all(found[name].dtype.kind in "fiu" for name in names)
        require(real, f"{path}: mu and sigma should hold real numbers: is it a file of statistics?")
        mean, covariance = (torch.from_numpy(np.asarray(found[name], np.float64)) for name in names)
        finite = bool(mean.isfinite().all() and covariance.isfinite().all())
        require(finite, f"the statistics in {path} hold NaN or infinity: download or make the file again")
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        require(
            mean.ndim == 1 and len(mean) > 0 and covariance.shape == (len(mean),) * 2,
            f"{path}: {shapes} do not fit each other",
        )
        scale = covariance.abs().max()
        possible = covariance.diagonal().min() >= 0 and (covariance - covariance.T).abs().max() <= 1e-4 * scale
        require(bool(possible), f"{path}: sigma is no covariance, it should be symmetric with a diagonal of at least 0")
        count = int(found["count"]) if "count" in found else None
        return cls(mean, covariance, count, str(found["identity"]) if "identity" in found else None)


def fid(samples: Moments, reference: Moments) -> float:
    """Return the Fréchet distance of two sets of features.

    Raises:
        UserError: the features come from different extractors.
    """
    sizes = len(samples.mean), len(reference.mean)
    differ = f"features of {sizes[0]} and {sizes[1]} dimensions cannot be compared: use one extractor"
    require(sizes[0] == sizes[1], differ)
    known = samples.identity, reference.identity
    require(
        None in known or known[0] == known[1],
        f"the samples' features were made by {known[0]}, the reference's by {known[1]}: make the reference again",
    )
    device = samples.mean.device
    return frechet_distance(
        samples.mean, samples.covariance, reference.mean.to(device), reference.covariance.to(device)
    ).item()

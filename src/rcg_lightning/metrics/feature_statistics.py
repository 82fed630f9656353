"""One pass over features, from which Fréchet distance, Inception score and the neighbour metrics all come.

``FeatureStatistics`` accumulates; its ``compute`` gives a ``Summary``, the statistics of one set of images, from
which metrics against other sets are taken. Nothing here knows what made the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from rcg_lightning.core.counter_rng import mix
from rcg_lightning.core.frechet import frechet_distance, moments_from_sums
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.npz_files import read_npz
from rcg_lightning.types import require

SPLITS = 10  # of the published Inception scores,
SPLIT_FROM = 50_000  # which are over so many images; smaller splits are biased more: one for all below it


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (d,) and unbiased covariance (d, d), float64, of ``count`` features (None: unknown) of one extractor."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    identity: str | None = None  # of the extractor that made the features

    def cpu(self) -> "Moments":
        """Return the same in ordinary memory."""
        return replace(self, mean=self.mean.cpu(), covariance=self.covariance.cpu())

    def save(self, path: Path) -> None:
        """Write an .npz with mu and sigma (the usual names, float64) and, of ours, count and identity."""
        arrays: dict[str, Any] = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        extra = {"count": self.count, "identity": self.identity}
        arrays |= {name: np.asarray(value) for name, value in extra.items() if value is not None}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path, suffix: str = "") -> "Moments":
        """Read an .npz that holds mu (d,) and sigma (d, d), such as the statistics files that papers publish.

        Args:
            path: the file.
            suffix: ``_s`` reads mu_s and sigma_s instead, the spatial features of sFID.

        Raises:
            UserError: no such file, not such a file, or shapes that do not fit.
        """
        names = f"mu{suffix}", f"sigma{suffix}"
        require(path.is_file(), f"no reference statistics at {path}: correct the path or make them first")
        found = read_npz(path, (*names, "count", "identity"), "reference statistics")
        absent = " and ".join(name for name in names if name not in found)
        require(not absent, f"{path} does not hold {absent}, but mu and sigma are needed: is it a file of statistics?")
        mean, covariance = (torch.from_numpy(np.asarray(found[name], np.float64)) for name in names)
        finite = bool(mean.isfinite().all() and covariance.isfinite().all())
        require(finite, f"the statistics in {path} hold NaN or infinity: get or make the file again")
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        require(mean.ndim == 1 and covariance.shape == (len(mean),) * 2, f"{path}: {shapes} do not fit each other")
        count = int(found["count"]) if "count" in found else None
        return cls(mean, covariance, count, str(found["identity"]) if "identity" in found else None)


def fid(samples: Moments, reference: Moments) -> float:
    """Return the Fréchet distance of two sets of features; it is *the* FID where the features are Inception's.

    Raises:
        UserError: the features come from different extractors.
    """
    sizes = len(samples.mean), len(reference.mean)
    require(
        sizes[0] == sizes[1], f"features of {sizes[0]} and {sizes[1]} dimensions are no distance apart: one extractor"
    )
    known = samples.identity, reference.identity
    require(
        None in known or known[0] == known[1],
        f"the samples' features were made by {known[0]}, the reference's by {known[1]}: make the reference again",
    )
    device = samples.mean.device
    return frechet_distance(
        samples.mean, samples.covariance, reference.mean.to(device), reference.covariance.to(device)
    ).item()


class Summary:
    """The statistics of one set of images, made by ``FeatureStatistics.compute``.

    A plain class: torchmetrics takes tuples and dataclasses that a metric returns apart.

    Args:
        moments: of the features.
        classes: Σ p(y|x) of each of SPLITS parts (SPLITS, K), float64; None without logits.
        certainty: Σ of the negative entropies Σ_y p log p of each part (SPLITS,), float64.
        parts: number of images in each part (SPLITS,), float64.
        features: (N, d) float32 where they were kept, else None, in the order of their images' names.
    """

    def __init__(
        self, moments: Moments, classes: Tensor | None, certainty: Tensor, parts: Tensor, features: Tensor | None
    ) -> None:
        self.moments, self.classes, self.certainty, self.parts = moments, classes, certainty, parts
        self.features = features

    @property
    def count(self) -> int:
        return self.moments.count or 0

    def inception_score(self, splits: int | None = None) -> tuple[float, float]:
        """Return mean and standard deviation (unbiased; 0 for one split) of exp(mean KL(p(y|x) ‖ p(y))) over splits.

        The rule: from SPLIT_FROM images on, SPLITS parts, which a hash of the images' names makes; below, one part,
        for a score of few images is too low.

        Args:
            splits: 1 or SPLITS.
        """
        if self.classes is None:
            raise UserError("this extractor gives no class logits, so there is no Inception score")
        splits = splits or (SPLITS if self.count >= SPLIT_FROM else 1)
        require(splits in (1, SPLITS), f"an Inception score is taken over 1 or {SPLITS} splits, not {splits}")
        sums = self.classes, self.certainty, self.parts
        scores = _exponential_information(*(value.sum(0, keepdim=True) if splits == 1 else value for value in sums))
        return scores.mean().item(), scores.std().item() if splits > 1 else 0.0


def _exponential_information(classes: Tensor, certainty: Tensor, parts: Tensor) -> Tensor:
    """exp of the mutual information of image and class, (S,), from sums over each of S parts."""
    marginal = classes / parts[:, None]
    return (certainty / parts - torch.xlogy(marginal, marginal).sum(1)).exp()


class SumMetric(Metric):
    """Base of metrics whose states are float64 sums; on MPS, which has no float64, they stay on the CPU.

    Where processes are to be summed, move it to the device of the distributed backend before use.
    """

    full_state_update = False
    _kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}  # of rows, by their states' names

    @property
    def update_called(self) -> bool:
        """Always: a process without a share is not the mistake that torchmetrics warns of."""
        return True

    def add_sums(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Add a state of zeros for each name."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_rows(self, kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Add a list of batches (B, *shape) for each name, given the shape and type of a row."""
        self._kinds = kinds
        for name in kinds:
            self.add_state(name, [], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor:
        """Return the rows (N, *shape) of all batches, after synchronisation of all processes."""
        found = getattr(self, name)
        shape, dtype = self._kinds[name]
        if isinstance(found, Tensor):
            return found
        return torch.cat([torch.empty(0, *shape, dtype=dtype, device=self.device), *found])

    def _sync_dist(self, *args: Any, **settings: Any) -> None:
        for name, (shape, dtype) in self._kinds.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):  # a process that saw nothing
                setattr(self, name, [torch.empty(0, *shape, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **settings)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if fn(torch.empty(0)).device.type == "mps":
            return self
        return super()._apply(fn, *args, **kwargs)


class FeatureStatistics(SumMetric):
    """Accumulates one set's features and class logits, in float64 sums that do not depend on batches or processes.

    Args:
        dim: d of the features.
        classes: K of the logits, None where there are none.
        keep: keep the features themselves too, for neighbour metrics (N·d float32, gathered by every process).
        identity: of the extractor, carried into the moments.
    """

    total: Tensor
    outer: Tensor
    marginals: Tensor
    negative_entropies: Tensor
    counts: Tensor
    kept: Any  # list of (B, d); one tensor once it is synchronised
    names: Any  # list of (B,), of the images whose features are kept

    def __init__(
        self, dim: int, classes: int | None = None, keep: bool = False, identity: str | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.dim, self.classes, self.keep, self.identity = dim, classes, keep, identity
        self.seen = 0  # by this process
        parts = {"marginals": (SPLITS, classes or 0), "negative_entropies": (SPLITS,), "counts": (SPLITS,)}
        self.add_sums({"total": (dim,), "outer": (dim, dim), **parts})
        if keep:
            self.add_rows({"kept": ((dim,), torch.float32), "names": ((), torch.int64)})

    def update(self, features: Tensor, logits: Tensor | None = None, index: Tensor | None = None) -> None:
        """Add features (B, d) and logits (B, K) of any float type.

        Args:
            index: (B,) int64, names of the images (their seeds): they decide which split of the Inception score each
                one belongs to and the order of kept features, the same for any number of processes. By default the
                order within this process.
        """
        require(features.shape[1:] == (self.dim,), f"features of shape {tuple(features.shape)}, not (B, {self.dim})")
        require((logits is None) == (self.classes is None), "logits must be given always or, without classes, never")
        wide = self._double(features)
        require(
            bool(wide.isfinite().all()), "the features hold NaN or infinity: the images or the extractor are broken"
        )
        self.total += wide.sum(dim=0)
        self.outer += wide.T @ wide
        names = torch.arange(self.seen, self.seen + len(wide)) if index is None else index.detach()
        names = names.to(self.total.device)
        # hashed, for classes are often drawn in turns and a plain remainder would give each split a few classes only
        part = mix(names) % SPLITS
        part = (part[:, None] == torch.arange(SPLITS, device=part.device)).double()  # (B, SPLITS), one-hot
        self.counts += part.sum(dim=0)
        self.seen += len(wide)
        if logits is not None:
            log_p = self._double(logits).log_softmax(dim=1)
            self.marginals += part.T @ log_p.exp()
            self.negative_entropies += part.T @ (log_p.exp() * log_p).sum(dim=1)
        if self.keep:
            self.kept.append(features.detach().float().to(self.total.device))
            self.names.append(names)

    def compute(self) -> Summary:
        """Return the statistics of everything seen by all processes; at least two images."""
        count = int(self.counts.sum())
        require(count >= 2, f"statistics of {count} images say nothing: at least 2 are needed, thousands are usual")
        moments = Moments(*moments_from_sums(count, self.total, self.outer), count, self.identity)
        kept = None
        if self.keep:
            kept = self.rows("kept")[self.rows("names").argsort(stable=True)]
        # copies, for the states are added to in place later
        classes = self.marginals.clone() if self.classes else None
        return Summary(moments, classes, self.negative_entropies.clone(), self.counts.clone(), kept)

    def reset(self) -> None:
        super().reset()
        self.seen = 0

    def _double(self, value: Tensor) -> Tensor:
        return value.detach().to(self.total.device).double()


def metric_name(kind: str, extractor: str, count: int, reference: str | None = None) -> str:
    """Return a name that says all that a metric depends on: ``fid/inception_5k_train``, ``fd/classifier_1346_val``.

    Args:
        kind: ``fd``, ``sfd`` or ``kd`` (``fid``, ``sfid``, ``kid`` where the extractor is Inception), ``is``, …
        extractor: the extractor's name.
        count: number of images scored.
        reference: what they are compared with, None where it is nothing.
    """
    if extractor == "inception" and kind.split("_")[0] in ("fd", "sfd", "rfd", "kd"):
        kind = kind.replace("d", "id", 1)
    size = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
    return f"{kind}/{extractor}_{size}" + (f"_{reference}" if reference else "")

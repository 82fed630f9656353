"""How well a codec gives images back: PSNR, SSIM, LPIPS and the Fréchet distance of reconstructions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import CHEAP, Scorer, warn_of_doubts
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import fid
from rcg_lightning.pretrained.perceptual import Backbone, check_size, perceptual_similarity
from rcg_lightning.types import require

_SSIM_FROM = 6  # pixels, that its window needs


def reconstruction_scores(
    pairs: Iterable[tuple[Tensor, Tensor]],
    extractor: FeatureExtractor | None = None,
    reference: Reference | None = None,
    lpips: Backbone | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return what ``Reconstruction`` computes over ``pairs``: originals and their reconstructions, uint8 batches.

    The other arguments are those of ``Reconstruction``.
    """
    metric = Reconstruction(extractor, reference, lpips).to(device)
    for original, made in pairs:
        metric.update(original.to(device), made.to(device))
    return metric.compute()


class Reconstruction(nn.Module):
    """``psnr`` and ``ssim`` of pairs of images, with ``lpips`` and the Fréchet distance ``rfd`` where asked for.

    PSNR in dB is the mean over images, infinite where one is given back exactly. SSIM is torchmetrics': Gaussian
    window of 11 pixels, borders reflected; there is none for images below 6 pixels.

    Args:
        extractor: for ``rfd``, which is the rFID where it is Inception; None leaves it out.
        reference: real images that reconstructions are compared with; None takes the originals of the pairs.
        lpips: network of LPIPS (``alex`` in most metrics), None leaves it out.

    Raises:
        UserError: the weights of LPIPS are neither here nor to be fetched.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        reference: Reference | None = None,
        lpips: Backbone | None = None,
    ) -> None:
        super().__init__()
        require(extractor is not None or reference is None, "a reference needs the extractor that measured it")
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.perceptual = None if lpips is None else perceptual_similarity(lpips)
        self.lpips = MeanMetric()  # LPIPS' own state needs as many batches from each process
        self.extractor = extractor
        against = reference is not None and extractor is not None
        self.scorer = Scorer(extractor, reference, CHEAP) if against else None  # type: ignore[arg-type]
        alone = extractor is not None and reference is None
        self.sets = nn.ModuleList(_statistics(extractor) for _ in range(2)) if alone else None  # type: ignore[arg-type]
        self.has_ssim = False

    def update(self, original: Tensor, made: Tensor) -> None:
        """Add images and their reconstructions in the same order, uint8 (B, C, H, W) both."""
        shapes = tuple(original.shape), tuple(made.shape)
        fits = original.dtype == made.dtype == torch.uint8 and shapes[0] == shapes[1] and original.ndim == 4
        require(fits, f"originals {original.dtype} {shapes[0]} and reconstructions {made.dtype} {shapes[1]} do not fit")
        pair = made.float() / 255, original.float() / 255
        self.psnr.update(*pair)
        side = min(original.shape[2:])
        if side >= _SSIM_FROM:
            self.has_ssim = True
            self.ssim.update(*pair)
        if self.perceptual is not None:
            check_size(side)
            self.perceptual.reset()
            self.perceptual.update(*(image.expand(-1, 3, -1, -1) for image in pair))
            self.lpips.update(self.perceptual.compute(), len(original))  # weighted by their number
        if self.scorer is not None:
            self.scorer.update(made)
        elif self.extractor is not None and self.sets is not None:
            for statistics, images in zip(self.sets, (made, original)):
                statistics.update(self.extractor(images).pooled)  # type: ignore[operator]

    def compute(self) -> dict[str, float]:
        """Return the metrics over all pairs and processes."""
        found = {"psnr": float(self.psnr.compute())}
        if self.has_ssim:
            found["ssim"] = float(self.ssim.compute())  # type: ignore[arg-type]
        if self.perceptual is not None:
            found["lpips"] = float(self.lpips.compute())
        if self.scorer is not None:
            found["rfd"] = self.scorer.compute()["fd"]
        elif self.sets is not None:
            made, original = (statistics.compute().moments for statistics in self.sets)  # type: ignore[operator]
            warn_of_doubts(made, original)
            found["rfd"] = fid(made, original)
        return found


def _statistics(extractor: FeatureExtractor) -> FeatureStatistics:
    return FeatureStatistics(extractor.dim, identity=extractor.identity)

"""How well a codec reconstructs images: PSNR, SSIM, LPIPS and the Fréchet distance of reconstructions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import CHEAP, Scorer, warn_if_unreliable
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import fid
from rcg_lightning.pretrained.perceptual import LPIPSBackbone, check_size, perceptual_similarity
from rcg_lightning.types import require

_MIN_SSIM_SIZE = 6  # pixels; smaller images do not fit its window


def reconstruction_scores(
    pairs: Iterable[tuple[Tensor, Tensor]],
    extractor: FeatureExtractor | None = None,
    reference: Reference | None = None,
    lpips: LPIPSBackbone | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the metrics of ``Reconstruction`` over ``pairs``: originals and their reconstructions, uint8 batches.

    The other arguments are those of ``Reconstruction``.
    """
    metric = Reconstruction(extractor, reference, lpips).to(device)
    for original, reconstruction in pairs:
        metric.update(original.to(device), reconstruction.to(device))
    return metric.compute()


class Reconstruction(nn.Module):
    """``psnr`` and ``ssim`` of pairs of images and, on request, ``lpips`` and the Fréchet distance ``rfd``.

    PSNR in dB is the mean over images, infinite where an image is reconstructed exactly. SSIM is that of torchmetrics:
    Gaussian window of 11 pixels, reflected borders; images below 6 pixels have none.

    Args:
        extractor: of ``rfd``, which is the rFID with Inception; None leaves it out.
        reference: the real images of ``rfd``; None uses the originals of the pairs.
        lpips: network of LPIPS (``alex`` in most publications); None leaves it out.

    Raises:
        UserError: the weights of LPIPS are missing and cannot be downloaded.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        reference: Reference | None = None,
        lpips: LPIPSBackbone | None = None,
    ) -> None:
        super().__init__()
        require(extractor is not None or reference is None, "a reference needs the extractor that measured it")
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.perceptual = None if lpips is None else perceptual_similarity(lpips)
        self.lpips = MeanMetric()  # the state of LPIPS itself needs equally many batches from each process
        self.extractor = extractor
        self.scorer: Scorer | None = None
        self.sets: nn.ModuleList | None = None
        if extractor is not None and reference is not None:
            self.scorer = Scorer(extractor, reference, CHEAP)
        elif extractor is not None:
            self.sets = nn.ModuleList(
                FeatureStatistics(extractor.dim, identity=extractor.identity) for _ in ("reconstructions", "originals")
            )
        self.has_ssim = False

    @float32_precision("highest")  # SSIM and LPIPS are convolutions
    def update(self, original: Tensor, reconstruction: Tensor) -> None:
        """Add images and their reconstructions in the same order, uint8 (B, C, H, W) both."""
        types, shapes = zip(*((images.dtype, tuple(images.shape)) for images in (original, reconstruction)))
        fits = set(types) == {torch.uint8} and shapes[0] == shapes[1] and original.ndim == 4
        require(fits, f"originals {types[0]} {shapes[0]} and reconstructions {types[1]} {shapes[1]} do not fit")
        pair = reconstruction.float() / 255, original.float() / 255
        self.psnr.update(*pair)
        side = min(original.shape[2:])
        if side >= _MIN_SSIM_SIZE:
            self.has_ssim = True
            self.ssim.update(*pair)
        if self.perceptual is not None:
            check_size(side)
            self.perceptual.reset()
            self.perceptual.update(*(image.expand(-1, 3, -1, -1) for image in pair))
            self.lpips.update(self.perceptual.compute(), len(original))  # weighted by their number
        if self.scorer is not None:
            self.scorer.update(reconstruction)
        elif self.extractor is not None and self.sets is not None:
            for statistics, images in zip(self.sets, (reconstruction, original)):
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
            reconstructed, original = (statistics.compute().moments for statistics in self.sets)  # type: ignore
            warn_if_unreliable(reconstructed, original)
            found["rfd"] = fid(reconstructed, original)
        return found

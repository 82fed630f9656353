"""Perceptual losses: distance of two images in the features of a frozen network, with a gradient to the image."""

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.downloads import published, reason_of
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.types import require

LPIPSBackbone = Literal["alex", "vgg", "squeeze"]
_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
URL = "https://download.pytorch.org/models/"
SMALLEST = 32  # pixels a side, because LPIPS' networks pool


class PerceptualLoss(ConfigMixin):
    """Distance of two images in the features of a frozen network."""

    @abstractmethod
    def setup(self, shape: tuple[int, int, int]) -> None:
        """Load the network; raise UserError if it is missing or images (C, H, W) do not fit it."""

    @abstractmethod
    def __call__(self, made: Tensor, original: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], both -> mean distance, a scalar."""


class LPIPS(PerceptualLoss):
    """Learned perceptual similarity (Zhang et al. 2018); VQGANs are trained with ``vgg``.

    Args:
        backbone: its network; torch hub has the weights in its cache or downloads them.
        precision: of its network: ``highest`` is float32; ``high`` (TF32) and ``bf16`` are faster on GPUs.
    """

    def __init__(self, backbone: LPIPSBackbone = "vgg", precision: FrozenPrecision = "highest") -> None:
        self.backbone: LPIPSBackbone = backbone
        self.precision: FrozenPrecision = precision
        self._frozen = Frozen(self._make, precision)

    def _make(self) -> nn.Module:
        return perceptual_similarity(self.backbone).net

    def setup(self, shape: tuple[int, int, int]) -> None:
        check_size(min(shape[1:]))
        self._frozen.setup()

    def __call__(self, made: Tensor, original: Tensor) -> Tensor:
        pair = (2 * image.expand(-1, 3, -1, -1) - 1 for image in (made, original))
        return self._frozen(*pair).mean()


class FeatureLoss(PerceptualLoss):
    """Squared distance of an encoder's features, at each position scaled to length 1: LPIPS without learned weights.

    For images that LPIPS' networks do not know, such as digits.

    Args:
        encoder: any encoder; best one that was trained on the same data.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def setup(self, shape: tuple[int, int, int]) -> None:
        self.encoder.setup()

    def __call__(self, made: Tensor, original: Tensor) -> Tensor:
        with torch.no_grad():
            expected = nn.functional.normalize(self.encoder.feature_map(original), dim=1)  # (B, D, h, w)
        found = nn.functional.normalize(self.encoder.feature_map(made), dim=1)
        return (found - expected).square().sum(1).mean()


def check_size(side: int) -> None:
    """Raise UserError if images are too small for LPIPS."""
    require(side >= SMALLEST, f"LPIPS needs images of at least {SMALLEST} pixels, not {side}: leave it out")


def perceptual_similarity(backbone: LPIPSBackbone) -> LearnedPerceptualImagePatchSimilarity:
    """Return torchmetrics' LPIPS for images in [0, 1]; raise UserError if its network's weights are missing."""
    require(backbone in _FILES, f"LPIPS has networks {', '.join(_FILES)}, not {backbone!r}")
    file = Path(torch.hub.get_dir()) / "checkpoints" / _FILES[backbone]
    sha256 = file.stem.rpartition("-")[2]  # torchvision names files by the beginning of their checksum
    published("the weights of LPIPS", URL + file.name, file, sha256, "leave LPIPS out")
    try:
        return LearnedPerceptualImagePatchSimilarity(backbone, normalize=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"the weights of LPIPS in {file} could not be loaded ({reason_of(error)})") from error

"""Feature extractors for metrics; only features of the same extractor can be compared.

Published metrics use Inception, which suits natural images. For other data, and offline, use a small classifier that
was trained on the real data, or the self-supervised encoder.
"""

import io
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rcg_lightning.artifacts import file_sha256
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.precision import FrozenPrecision, with_precision
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.pretrained.checkpoints import read_checkpoint
from rcg_lightning.pretrained.downloads import published
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.pretrained.network_folder import load_network, read_description
from rcg_lightning.types import require

INCEPTION_SHA256 = "6726825d"  # its beginning
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION_SHA256}.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17


class Features(NamedTuple):
    """The features of B images.

    Attributes:
        pooled: (B, dim), of the whole image.
        logits: (B, classes); None without classes.
        spatial: (B, spatial_dim), features of each position, for sFID; None where the extractor has none.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class FeatureExtractor(ConfigMixin):
    """Base of frozen networks for metrics: from uint8 images to features, and to class logits where there are classes.

    Attributes:
        name: the extractor's name in the names of metrics.
    """

    name: str

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of features."""

    @property
    def classes(self) -> int | None:
        """The number of logits, None where there are none."""
        return None

    @property
    def spatial_dim(self) -> int | None:
        """The number of spatial features, None where there are none."""
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """A hash of the weights and of everything else that the features depend on."""

    @abstractmethod
    def setup(self) -> None:
        """Find and load the network, or raise a UserError; call it before any long work."""

    @abstractmethod
    def release(self) -> None:
        """Free the network's memory."""

    @abstractmethod
    def extract(self, images: Tensor) -> Features:
        """Return the features of checked images; ``__call__`` checks them."""

    def __call__(self, images: Tensor) -> Features:
        """Return the features, float32, of images (B, C, H, W) uint8 with C = 1 or 3."""
        shape = tuple(images.shape)
        require(
            images.dtype == torch.uint8 and images.ndim == 4 and shape[1] in (1, 3),
            f"images to score are uint8 (B, 1 or 3, H, W), not {images.dtype} {shape}: convert them with to_uint8",
        )
        # the same memory layout for all: else images from a file and from memory differ in the last digits
        images = images.clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            found = self.extract(images)
        return Features(*(None if part is None else part.float() for part in found))  # type: ignore[arg-type]


class InceptionExtractor(FeatureExtractor):
    """The Inception-v3 of the published FID and IS, in torch-fidelity's port: 2048 features, 1008 unbiased logits.

    Grey images are repeated to three channels; the resize to 299 pixels is TensorFlow 1's bilinear, as in the original.
    The spatial features are those of the ADM suite: 7 channels at 17 x 17 positions.

    Args:
        weights: torch-fidelity's file (.pth, or its tensors as .safetensors). By default the file in torch hub's cache,
            which is downloaded if it is missing.
        precision: ``highest``, float32, is that of published metrics; ``high`` (TF32) and ``bf16`` are faster on GPUs
            and part of the extractor's name and identity.
    """

    def __init__(self, weights: Path | None = None, precision: FrozenPrecision = "highest") -> None:
        self.weights = weights
        self.name = with_precision("inception", precision)
        self.network = Frozen(self._make, precision)

    @property
    def dim(self) -> int:
        return 2048

    @property
    def classes(self) -> int:
        return 1008

    @property
    def spatial_dim(self) -> int:
        return SPATIAL_SIDE**2 * SPATIAL_CHANNELS

    @cached_property
    def identity(self) -> str:
        return f"{self.name}-{file_sha256(self._find())[:16]}"

    def setup(self) -> None:
        self.network.setup()

    def release(self) -> None:
        self.network.release()

    def extract(self, images: Tensor) -> Features:
        return Features(*self.network(images.expand(-1, 3, -1, -1)))

    def _find(self) -> Path:
        if self.weights is not None:
            require(self.weights.is_file(), f"no Inception weights at {self.weights}: get {INCEPTION_URL}")
            return self.weights
        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        otherwise = "give the file as --extractor.weights, or score with another extractor"
        return published("the Inception weights", INCEPTION_URL, path, INCEPTION_SHA256, otherwise)

    def _make(self) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # its constructor unpickles the file it receives, so it receives a copy of weights that were read safely
        torch.save(read_checkpoint(self._find(), "Inception"), checked := io.BytesIO())
        checked.seek(0)
        layers = ["2048", "logits_unbiased"]
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=checked)
        except RuntimeError as error:
            reason = one_line(error, 200)
            raise UserError(f"{self._find()} does not hold torch-fidelity's Inception weights: {reason}") from error
        _fuse(network)  # together with channels_last 1.7 times faster on a CPU
        return _WithSpatial(network.to(memory_format=torch.channels_last))


def _fuse(network: nn.Module) -> None:
    """Fold each frozen batch normalisation into the weights of its convolution: the same up to rounding."""
    for block in network.modules():
        conv, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()


class _WithSpatial(nn.Module):
    """Inception with the features of sFID: the ADM suite's ``mixed_6/conv``.

    TensorFlow counts blocks from "mixed" on, so this is the 1 x 1 branch of Mixed_6d (not of Mixed_6e), after its ReLU.
    Positions come before channels, as in the published means and covariances.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial: Tensor | None = None
        network.Mixed_6d.branch1x1.register_forward_hook(self._store)  # type: ignore[union-attr, operator]

    def _store(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 17 * 17 * 7), a copy

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits = self.network(images)
        spatial, self.spatial = self.spatial, None
        assert spatial is not None
        return features, logits, spatial


class ClassifierExtractor(FeatureExtractor):
    """A classifier that the classifier stage trained on the real data and exported as a network folder.

    Args:
        folder: the network folder.
        precision: ``highest`` is float32; ``high`` (TF32) and ``bf16`` are part of the extractor's name and identity.
    """

    def __init__(self, folder: Path, precision: FrozenPrecision = "highest") -> None:
        self.folder = folder
        self.name = with_precision("classifier", precision)
        self.network = Frozen(lambda: load_network(folder)[0], precision)

    @cached_property
    def _description(self) -> dict:
        description = read_description(self.folder)
        require(
            {"image", "classes", "dim"} <= description["settings"].keys(),
            f"{self.folder} holds no classifier for metrics: give the folder that the classifier stage wrote",
        )
        return description

    @property
    def dim(self) -> int:
        return self._description["settings"]["dim"]

    @property
    def classes(self) -> int:
        return self._description["settings"]["classes"]

    @property
    def identity(self) -> str:
        return f"{self.name}-{self._description['sha256'][:16]}"

    def setup(self) -> None:
        assert self._description  # a wrong folder is rejected
        self.network.setup()

    def release(self) -> None:
        self.network.release()

    def extract(self, images: Tensor) -> Features:
        channels, height, width = self._description["settings"]["image"]
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        require(
            tuple(images.shape[1:]) == (channels, height, width),
            f"the classifier in {self.folder} reads images of {(channels, height, width)}, not "
            f"{tuple(images.shape[1:])}: train one on this data",
        )
        return Features(*self.network(images.float() / 255))


class EncoderExtractor(FeatureExtractor):
    """The representation of a pretrained encoder; it has no classes, so there is no Inception score.

    The literature's Fréchet distance over DINOv2 (Stein et al. 2023) uses
    ``TimmEncoder("vit_large_patch14_dinov2.lvd142m", size=224, normalise=Identity())``.

    Args:
        encoder: the encoder, with its own resize, normalisation and precision.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.name = with_precision("encoder", encoder.precision)

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def identity(self) -> str:
        return f"encoder-{self.encoder.identity}"

    def setup(self) -> None:
        self.encoder.setup()

    def release(self) -> None:
        self.encoder.release()

    def extract(self, images: Tensor) -> Features:
        return Features(self.encoder(images.float() / 255))

"""Measure the stages of a run and their references on the run's own images, and grade them."""

import math
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.core.contrastive import effective_rank, uniformity
from rcg_lightning.data.augmentations import SmallColourAugmentation, SmallGreyAugmentation
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_split import fixed_subset
from rcg_lightning.evaluation.protocols import bind_representations
from rcg_lightning.evaluation.reference import BATCH, MAX_STORED_BYTES, Reference, real_images
from rcg_lightning.evaluation.sample_readers import open_samples, samples_folder
from rcg_lightning.evaluation.scorer import CHEAP, score
from rcg_lightning.evaluation.verdict import (
    Representation,
    SampleMetrics,
    Verdict,
    encoder_verdict,
    generator_verdict,
    rdm_verdict,
    tokenizer_verdict,
)
from rcg_lightning.metrics.copy_rate import copy_threshold, nearest_images
from rcg_lightning.metrics.feature_extractors import EncoderExtractor, FeatureExtractor
from rcg_lightning.metrics.fid import fid
from rcg_lightning.metrics.reconstruction import Reconstruction
from rcg_lightning.metrics.representation_distance import moments_of
from rcg_lightning.networks.principal_components import PrincipalComponents, fit_principal_components
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.sampling.loading import same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import samples_by_tile
from rcg_lightning.stages.stage_folder import prior_at
from rcg_lightning.types import Codec, require, to_uint8

PIXELS = 1024  # largest dimension of the images whose principal components are a reference
TRAINING = 5  # training images in a reference, as a multiple of the other images: their features are the dearest part
_CHUNK = 4096  # pixels that are exchanged at once


def untrained_encoder(side: int) -> Encoder:
    """Return an untrained network for images of ``side`` pixels, always the same one.

    It is a reference for encoders, and makes the features of samples where no other extractor is given.
    """
    return TimmEncoder("resnet18", pretrained=False, size=max(32, min(side, 64)))


class StageMeasurements:
    """Verdicts on the stages of one run.

    Args:
        data: the run's images, and the stores of their representations.
        number: maximum number of images, samples and representations to compare.
        device: where to compute.
        extractor: makes the features to compare images in. None: of the untrained network.
    """

    def __init__(
        self, data: ImageDataModule, number: int, device: torch.device, extractor: FeatureExtractor | None = None
    ) -> None:
        data.prepare_data()
        self.data, self.number, self.device = data, number, device
        self.untrained = untrained_encoder(min(data.spec.image[1:]))
        self.extractor = extractor or EncoderExtractor(self.untrained)
        self.extractor.setup()
        self.trained = extractor is not None
        self.features = "features of an untrained network" if extractor is None else f"{extractor.name} features"

    def encoder(self, encoder: Encoder) -> Verdict:
        """Grade an encoder by training images: changed copies of an image should be near each other."""
        check_independent(self.extractor, encoder)
        images = self._images("train", self.number).float() / 255
        require(len(images) > 2, f"{len(images)} training images are too few to evaluate an encoder")
        views = _views(images)
        small = [_at_most(part) for part in (images, *views)]
        dim = min(encoder.dim, len(images) - 1, small[0][0].numel())
        components = fit_principal_components(small[0], dim)
        return encoder_verdict(
            _representation([self._encoded(encoder, part) for part in (images, *views)]),
            _representation([encoder.normalise(components(part)) for part in small]),
            _representation([self._encoded(self.untrained, part) for part in (images, *views)]),
            len(images),
            isinstance(encoder.network, PrincipalComponents),
        )

    def tokenizer(self, codec: Codec) -> Verdict:
        """Grade an autoencoder by its reconstructions of evaluation images."""
        codec.shape(self.data.spec)
        reference = self._reference
        metric, codes = Reconstruction(self.extractor).to(self.device), set()
        mean = self._images("train", self.number).double().mean(0) / 255
        blank = []
        for batch in self._images("eval", self.number).split(BATCH):
            z = codec.encode({"image": batch.to(self.device).float() / 255})
            made = to_uint8(codec.decode(z).float())
            metric.update(batch.to(self.device), made)
            blank.append((batch.double() / 255 - mean).square().flatten(1).mean(1))
            codes |= set() if codec.count(self.data.spec) is None else set(z.flatten().tolist())
        found, errors = metric.compute(), torch.cat(blank).clamp_min(1e-12)
        count = codec.count(self.data.spec)
        assert reference.evaluation is not None
        real = fid(reference.evaluation.moments, reference.train.moments)
        blank_psnr = (-10 * errors.log10()).mean().item()
        used = None if count is None else (len(codes), count)
        return tokenizer_verdict(found["rfd"], real, found["psnr"], blank_psnr, used)

    def rdm(self, path: Path) -> Verdict:
        """Grade an RDM by the distance of its representations to those in the stores of the data."""
        rdm = Generator.load(prior_at(path), self.device)
        require(rdm.codec.makes == "representation", f"{path} makes {rdm.codec.makes}s: give an RDM as --prior")
        real, _ = bind_representations(self.data)
        same_encoder(rdm, real.identity, "--data.stores")
        count = min(self.number, real.count)
        generated = moments_of((samples.cpu() for samples in samples_by_tile(rdm, count)), real.dim)
        spread = real.train.covariance.diagonal() + (real.train.mean - real.train.mean.mean()).square()
        noise = torch.randn(count, real.dim, generator=torch.Generator().manual_seed(0)) * spread.mean().sqrt()
        as_noise = moments_of([(noise + real.train.mean.mean()).float()], real.dim)
        distances = [fid(moments, real.train) for moments in (generated, real.resampled(count), as_noise)]
        return rdm_verdict(*distances, count)  # type: ignore[reportArgumentType]

    def generator(self, path: Path, represented: bool = True) -> Verdict:
        """Grade a generator by samples in a folder, as `rcg sample` writes them; see ``generator_verdict``."""
        samples = open_samples(samples_folder(path))
        evaluation = self._images("eval", min(self.number, samples.count))
        count = len(evaluation)  # all metrics depend on the number
        shuffled = _shuffled(self._images("train", count))
        scores = [
            score(images, self._reference, self.extractor, self.device, CHEAP | {"precision"}, warn=False)
            for images in (samples.first(count), evaluation, shuffled)
        ]
        every = samples.first(self.number)
        copies = self._copies(every, evaluation)
        found, real = (
            SampleMetrics(one["fd"], one.get("precision"), one.get("recall"), copied, n)
            for one, copied, n in zip(scores, copies, (len(every), count))
        )
        return generator_verdict(found, real, scores[2]["fd"], self.features, represented, self.trained)

    @cached_property
    def _reference(self) -> Reference:
        """Measure training images, several times as many as are compared with them, and evaluation images."""
        count = len(self.data.images("eval"))
        require(count > 1, "verdicts need evaluation images: give data with an eval split")
        train, evaluation = self._images("train", TRAINING * self.number), self._images("eval", self.number)
        return Reference.measure(train, evaluation, self.extractor, device=self.device)

    def _copies(self, samples: Tensor, evaluation: Tensor) -> tuple[int | None, int | None]:
        """Return how many samples and evaluation images are copies of any training image; None if these are too many.

        A copy is nearer to a training image than 99 % of the evaluation images.
        """
        count = len(self.data.images("train"))
        if count * samples[0].numel() > MAX_STORED_BYTES:
            return None, None
        bank = self._images("train", count).to(self.device)
        threshold = copy_threshold(evaluation.to(self.device), bank)
        found = (nearest_images(images.to(self.device), bank)[0] for images in (samples, evaluation))
        copies, expected = (int((distance < threshold).sum()) for distance in found)
        return copies, expected

    def _images(self, split: str, count: int) -> Tensor:
        """Return at most ``count`` images of a split, uint8 (n, C, H, W), always the same."""
        index = fixed_subset(len(self.data.images(split)), count)
        return torch.cat(list(real_images(self.data, split, index)))

    def _encoded(self, encoder: Encoder, images: Tensor) -> Tensor:
        return torch.cat([encoder(part.to(self.device)).cpu() for part in images.split(BATCH)])


def check_independent(extractor: FeatureExtractor, encoder: Encoder) -> None:
    """Raise a UserError where samples would be evaluated by the encoder that they were made with."""
    same = isinstance(extractor, EncoderExtractor) and extractor.encoder.identity == encoder.identity
    require(not same, "--extractor is the run's own encoder: give another one, or leave it out")


def _views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return two changed copies of images (n, C, H, W) in [0, 1], always the same ones."""
    if images.shape[1] == 1:
        augmentation = SmallGreyAugmentation()
    else:
        augmentation = SmallColourAugmentation(area=0.4, flip=False, grey_probability=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return augmentation(images), augmentation(images)


def _representation(rows: list[Tensor]) -> Representation:
    """Return the metrics of representations (n, R) of the images and of two changed copies of each."""
    plain, one, other = (part.float() for part in rows)
    nearest = (F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).argmax(1)  # (n,)
    agreement = (nearest == torch.arange(len(one))).double().mean().item()
    return Representation(effective_rank(plain).item(), uniformity(plain).item(), agreement)


def _at_most(images: Tensor) -> Tensor:
    """Return images (n, C, H, W) of at most PIXELS dimensions, by averaging pixels."""
    side = math.isqrt(PIXELS // images.shape[1])
    height, width = (min(side, size) for size in images.shape[2:])
    return F.interpolate(images, (height, width), mode="area")


def _shuffled(images: Tensor) -> Tensor:
    """Exchange every pixel and channel of images (n, C, H, W) between them at random: each keeps its distribution."""
    flat, random = images.flatten(1).clone(), torch.Generator().manual_seed(0)
    for part in flat.split(_CHUNK, dim=1):
        order = torch.rand(part.shape, generator=random).argsort(0)
        part.copy_(part.gather(0, order))
    return flat.view_as(images)

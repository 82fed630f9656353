"""Self-supervised pre-training of an encoder by MoCo v3: views of the same image attract, of others repel."""

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveFloat, PositiveInt, UnitInterval
from rcg_lightning.config import construct, describe
from rcg_lightning.core.contrastive import effective_rank, symmetric_contrastive_loss, uniformity
from rcg_lightning.core.precision import frozen_precision
from rcg_lightning.data.augmentations import Augmentation, augmented
from rcg_lightning.data.data_module import ImageDataModule, as_floats
from rcg_lightning.data.image_split import fixed_subset
from rcg_lightning.data.neighbours import knn_accuracy
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.networks.ema import lerp_unless
from rcg_lightning.networks.heads import MLPHead, Projected
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, DataSpec, require


class MoCoV3Stage(Stage):
    """MoCo v3 (Chen et al. 2021): encoder, predictor on top, and a momentum encoder that makes the keys.

    Where both augmentations crop, the two views come from one image; otherwise the loader gives two crops. On GPUs all
    processes share batch statistics and keys; on CPUs only the keys, since torch has no synchronised batch
    normalisation there. One difference to the official code: the momentum encoder is updated right after the
    optimizer's step instead of right before the next keys. Training is the same, but a saved momentum encoder is one
    update ahead.

    The end of training writes the momentum encoder to ``encoder/`` in the trainer's root folder.

    Args:
        encoder: backbone and projection head.
        predictor: maps the head's output to the same dimension.
        view1: augmentation of the first view.
        view2: augmentation of the second view.
        optimizer: settings of the optimizer.
        momentum: weight of the old momentum encoder at the first step.
        final_momentum: the same at the last step; a half cosine over ``trainer.max_steps`` in between.
        temperature: temperature of the contrastive loss.
        preprocess: image in [0, 1] -> input of the backbone; by default ImageNet's mean and standard deviation.
        head: whether the exported encoder's representation is the head's output; otherwise it is the backbone's.
        bank_size: number of training images for the nearest-neighbour probe of validation.
        neighbours: number of nearest neighbours that vote.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        encoder: Projected,
        predictor: MLPHead,
        view1: Augmentation,
        view2: Augmentation,
        optimizer: Optimizer,
        momentum: UnitInterval = 0.99,
        final_momentum: UnitInterval = 1.0,
        temperature: PositiveFloat = 0.2,
        preprocess: Preprocess | None = None,
        head: bool = True,
        bank_size: PositiveInt = 4096,
        neighbours: PositiveInt = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        self.encoder, self.predictor = encoder, predictor
        self.view1, self.view2 = view1, view2
        self.momentum, self.final_momentum, self.temperature = momentum, final_momentum, temperature
        self.preprocess, self.head = preprocess or Preprocess(), head
        self.bank_size, self.neighbours = bank_size, neighbours
        self.steps = 0
        self.bank: dict[str, Tensor] = {}  # only during validation

    @property
    def needs(self) -> frozenset[str]:
        labels = {"label"} if self.spec is not None and self.spec.classes is not None else set()
        return frozenset({"image"} | labels | (set() if self.single_image else {"pair"}))

    @property
    def single_image(self) -> bool:
        """Whether both views come from the same image of the batch."""
        return self.view1.crops and self.view2.crops

    def build_networks(self, spec: DataSpec) -> None:
        # created again, so that the initial weights depend on the seed alone
        self.encoder = construct(describe(self.encoder))
        self.predictor = construct(describe(self.predictor))
        self._arguments |= {"encoder": self.encoder, "predictor": self.predictor}  # releases the given ones
        self.check_sizes(spec.image)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    @torch.no_grad()
    def check_sizes(self, shape: tuple[int, int, int]) -> None:
        """Raise UserError unless encoder and predictor accept images of ``shape``."""
        try:
            feature = self.encoder.eval()(self.preprocess(torch.zeros(1, *shape)))  # (1, D)
            prediction = self.predictor.eval()(feature)
        except RuntimeError as error:
            reason = one_line(error, 200)
            raise UserError(f"MoCoV3Stage: encoder or predictor does not fit images of {shape}: {reason}") from error
        sizes = f"the head has {feature.shape[1]} dimensions, the predictor {prediction.shape[1]}"
        require(feature.shape == prediction.shape, f"MoCoV3Stage: {sizes}: set the predictor's dim to the head's")
        self.encoder.train()
        self.predictor.train()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            for name in ("encoder", "predictor", "momentum_encoder"):
                setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(getattr(self, name)))

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.encoder, self.predictor]

    # -- training ------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        endless = self.trainer.max_steps < 1 and self.final_momentum != self.momentum
        require(not endless, "MoCoV3Stage: a momentum that changes needs trainer.max_steps, or set final_momentum")
        transform = getattr(getattr(self.trainer, "datamodule", None), "transform", None)
        uncropped = transform is not None and not transform.random and not self.single_image
        require(not uncropped, "MoCoV3Stage: nothing crops these views: set data.transform to RandomResizedCrop")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = self.views(batch)
        q1, q2 = (self.predictor(self.encoder(view)) for view in views)  # (B, D) each
        with torch.no_grad():
            k1, k2 = (self.momentum_encoder(view) for view in views)  # (B, D) each
            (k1, k2), offset = gather(torch.stack([k1, k2]))  # (N, D) each
        return {"loss": symmetric_contrastive_loss((q1, q2), (k1, k2), self.temperature, offset)}

    @torch.no_grad()
    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return two random views (B, C, H, W) of each image, as the backbone reads them."""
        other = batch["image"] if self.single_image else batch["pair"]
        first, second = augmented((self.view1, batch["image"]), (self.view2, other))
        return self.preprocess(first), self.preprocess(second)

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        momentum = cosine_momentum(self.steps, self.trainer.max_steps, self.momentum, self.final_momentum)
        averages, weights = self.momentum_encoder.parameters(), self.encoder.parameters()
        lerp_unless(self.guard.skip, [*averages], [*weights], 1 - momentum)

    def get_extra_state(self) -> Tensor:
        """The step count, as a tensor because a state dict holds tensors."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    # -- validation and export -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> float32 outputs of the momentum encoder: backbone (B, D), head (B, R)."""
        with frozen_precision("highest", image.device):  # as TrainedEncoder does
            backbone = self.momentum_encoder.backbone(self.preprocess(image))
            return {"backbone": backbone, "head": self.momentum_encoder.head(backbone)}

    def on_validation_epoch_start(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self.bank = {} if data is None or self.trainer.sanity_checking else self.make_bank(data)
        for name, features in self.bank.items():
            if name != "label":
                self.log(f"val/rank_{name}", effective_rank(features.cpu()), sync_dist=True)
                self.log(f"val/uniformity_{name}", uniformity(features.cpu()), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.bank = {}

    def make_bank(self, data: ImageDataModule) -> dict[str, Tensor]:
        """Return features by name, and labels where there are any, of a fixed selection of training images."""
        parts = []
        for batch in training_images(data, self.bank_size):
            labels = {"label": batch["label"].to(self.device)} if "label" in batch else {}
            parts.append(self.features(batch["image"].to(self.device)) | labels)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if "label" not in self.bank or "label" not in batch:
            return
        for name, queries in self.features(batch["image"]).items():
            bank, labels = self.bank[name], self.bank["label"]
            accuracy = knn_accuracy(bank, labels, queries, batch["label"], self.neighbours)
            size: Any = float(len(queries))  # see Stage.validation_step
            self.log(f"val/knn_{name}", accuracy, batch_size=size, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the outputs of backbone and head for each image, before any normalisation."""
        return self.features(batch["image"])

    @rank_zero_only
    def on_fit_end(self) -> None:
        if not getattr(self.trainer, "fast_dev_run", False):
            self.export(Path(self.trainer.default_root_dir) / "encoder")

    def export(self, folder: Path) -> None:
        """Write the momentum encoder as a network folder that ``TrainedEncoder`` reads."""
        save_network(folder, self.momentum_encoder, encoder_settings(self.preprocess, self.head))


def training_images(data: ImageDataModule, count: int) -> Iterator[Batch]:
    """Yield batches of ``count`` training images, always the same ones, without random transforms."""
    index = fixed_subset(len(data.images("train")), count)
    return map(as_floats, data.deterministic_batches("train", frozenset({"image", "label"}), index))


def cosine_momentum(step: int, total: int, first: float, last: float) -> float:
    """Return the momentum for ``step`` of ``total``: a half cosine from ``first`` to ``last``."""
    if first == last:
        return first
    return last - (last - first) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def gather(keys: Tensor) -> tuple[Tensor, int]:
    """Return keys (2, B, D) of all processes as (2, N, D), and the position of this process's first key."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return keys, 0
    parts = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, keys.contiguous())
    return torch.cat(parts, dim=1), torch.distributed.get_rank() * keys.shape[1]

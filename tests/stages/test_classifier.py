"""A classifier trained on the digits and its export."""

import pytest
import torch
from lightning.pytorch import Trainer

from rcg_lightning.data.augmentations import SmallGreyAugmentation
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.stages.classifier import ClassifierStage
from rcg_lightning.types import DataSpec


def test_digits_are_learned_and_exported(tmp_path):
    data = ImageDataModule(Digits(), batch_size=128)
    stage = ClassifierStage(augmentation=SmallGreyAugmentation(0.1, 8, 0.05, 0.06, 0.2, 0.0, 0.02))
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=200,
        max_epochs=-1,
        val_check_interval=200,
        check_val_every_n_epoch=None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, data)
    assert trainer.callback_metrics["val/accuracy"] > 0.98

    extractor = ClassifierExtractor(tmp_path / "classifier")
    images = data.images("eval")
    features, logits, _ = extractor(torch.from_numpy(images.array))
    assert features.shape == (451, extractor.dim) == (451, 64)
    accuracy = (logits.argmax(1).numpy() == images.labels).mean()
    assert accuracy == pytest.approx(trainer.callback_metrics["val/accuracy"].item(), abs=1e-6)


def test_the_same_seed_gives_the_same_network():
    spec = DataSpec((3, 16, 16), classes=4)
    first, again = (ClassifierStage(widths=(8, 8), seed=3).build(spec).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_data_without_labels_are_rejected():
    with pytest.raises(UserError, match="needs labels"):
        ClassifierStage().build(DataSpec((1, 8, 8)))

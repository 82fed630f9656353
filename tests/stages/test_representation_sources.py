"""Representations from a store and from an encoder: equal losses on the same views, of an RDM and a condition."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.callbacks.prediction_writer import predict_store
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.transforms import Views
from rcg_lightning.networks.principal_components import fit_principal_components
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.stages.extract import Extraction

FLIPPED = Views(flips=True)
STAGES = {
    "rdm": lambda encoder: {"codec": Representations(encoder)},
    "condition": lambda encoder: {"condition": RepresentationCondition(encoder=encoder)},
}


class Losses(Callback):
    """Records the losses of training and validation."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def encoder(tmp_path):
    images = torch.from_numpy(Digits(limit=64).train().array[:]).float() / 255
    network = fit_principal_components(images, 6)
    save_network(tmp_path / "pca", network, encoder_settings(Preprocess([0.0], [1.0]), head=False))
    return TrainedEncoder(tmp_path / "pca")


@pytest.fixture
def stores(tmp_path, trainer, encoder):
    """Stores of the representations of two views of each training image, and of the evaluation images."""

    def extract(split):
        data, extraction = ImageDataModule(Digits(limit=64), batch_size=32, views=FLIPPED), Extraction(encoder, [])
        identity = {**data.store_identity(split), **extraction.identities}
        writer = StoreWriter(tmp_path / split, len(data.images(split)), data.view_count(split), 50, identity)
        data.extract(split, writer.pending())
        run = trainer(tmp_path, 1)
        return predict_store(run, extraction, data, writer, extraction.columns(data.spec.image)).path

    return {"stores": [extract("train")], "eval_stores": [extract("eval")]}


@pytest.mark.parametrize("name", STAGES)
def test_losses_from_a_store_and_from_images_are_equal(make_stage, trainer, tmp_path, encoder, stores, name):
    losses = []
    for stored in (True, False):
        stage, callback = make_stage(**STAGES[name](None if stored else encoder)), Losses()
        data = ImageDataModule(Digits(limit=64), batch_size=32, views=FLIPPED, **(stores if stored else {}))
        trainer(tmp_path / str(stored), 4, callbacks=[callback]).fit(stage, datamodule=data)
        assert stage.spec.identities["representation"] == encoder.identity
        losses.append(callback.losses)
    assert len(losses[0]) == 5
    assert len(set(losses[0])) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

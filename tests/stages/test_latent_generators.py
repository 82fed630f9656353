"""Generators of tokens and latents: the same loss from a store and from images, and one autoencoder throughout."""

import pytest
import torch

from helpers.autoencoders import save_kl, save_vq
from rcg_lightning.callbacks.prediction_writer import PredictionWriter, predict_store
from rcg_lightning.callbacks.sample_grid import SampleGrid
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.transforms import Views
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.unet import UNet
from rcg_lightning.networks.vqgan import VQGAN
from rcg_lightning.pretrained.codecs import KLLatents, VQLatents, VQTokens
from rcg_lightning.stages.extract import Extraction
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW

FLIPPED = Views(flips=True)
KINDS = {"tokens": (VQTokens, None), "latents": (VQLatents, VQGAN), "kl": (KLLatents, None)}


@pytest.fixture
def made(tmp_path, make_stage, trainer):
    """Make an autoencoder, data with and without its store, and stages for its codec."""

    class Made:
        def __init__(self, name, seed=0):
            self.kind, network = KINDS[name]
            self.folder = tmp_path / f"{name}{seed}"
            if name == "kl":
                save_kl(self.folder, seed, channels=1)
            else:
                save_vq(self.folder, network, seed)

        def store(self, split="train"):
            """Extract once; two views of each training image."""
            codec, data = self.kind(self.folder), ImageDataModule(Digits(limit=64), batch_size=32, views=FLIPPED)
            work, path = Extraction(None, [codec]), tmp_path / f"{self.folder.name}-{split}-store"
            identity = {**data.store_identity(split), **work.identities}
            size = len(data.images(split))
            writer = StoreWriter(path, size, data.view_count(split), 50, identity)
            fit = trainer(tmp_path, 1, callbacks=[PredictionWriter(writer)])
            data.extract(split, writer.pending())
            return predict_store(fit, work, data, writer, work.columns(data.spec.image))

        def data(self, stored=True):
            paths = [self.store().path] if stored else []
            held = [self.store("eval").path] if stored else []
            source = Digits(limit=64)
            return ImageDataModule(source, batch_size=32, views=FLIPPED, stores=paths, eval_stores=held)

        def stage(self, codec, **more):
            if self.kind is not VQTokens:
                denoiser = Denoiser(UNet(8, [1], 1, [], 8, groups=4), CosineSchedule(100))
                return make_stage(codec=codec, denoiser=denoiser, **more)
            return MaskedStage(
                codec=codec,
                condition=NoCondition(),
                transformer=MAGE(16, 1, 2, 16, 1, 2),
                conditioner=Conditioner(),
                optimizer=AdamW(lr=1e-3),
                sampler=ParallelDecoding(3, 1.0),
            )

    return Made


class Losses(SampleGrid):
    """Notes what training and validation log."""

    def __init__(self):
        super().__init__(4)
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["val/loss"]))


@pytest.mark.parametrize("name", KINDS)
def test_training_and_validation_lose_the_same_from_a_store_and_from_images(made, trainer, tmp_path, name):
    """On the same views: a mirrored image is encoded, its latent is not the mirrored one's."""
    it, seen = made(name), []
    for stored in (True, False):
        stage, losses = it.stage(it.kind(it.folder, stored=stored)), Losses()
        run = trainer(tmp_path / str(stored), 3, callbacks=[losses])
        torch.manual_seed(0)
        run.fit(stage, datamodule=it.data(stored))
        seen.append(losses.seen)
        assert stage.spec.identities[it.kind.column] == it.kind(it.folder).identity
    assert len(seen[0]) >= 4
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_a_mirrored_image_is_encoded_itself(made):
    it = made("latents")
    rows = torch.from_numpy(it.store().whole("latent"))
    assert rows.shape == (64, 2, 4, 4, 4)
    image = torch.from_numpy(Digits(limit=64).train().array[:]).float() / 255
    codec = it.kind(it.folder)
    torch.testing.assert_close(rows[:, 0], codec.encoded(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[:, 1], codec.encoded(image.flip(3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rows[:, 1], rows[:, 0].flip(3), atol=1e-2)


def test_training_from_a_store_reads_no_autoencoder_and_sampling_takes_the_one_it_was_made_by(made, tmp_path, save):
    it, other = made("tokens"), made("tokens", seed=1)
    stage = it.stage(VQTokens()).build(it.data().spec)
    path = save(stage, tmp_path / "it.ckpt")
    with pytest.raises(UserError, match="--autoencoder"):
        stage.sample({"seed": torch.arange(2)})
    again = Generator.load(path)
    with pytest.raises(UserError, match="here are of"):
        again.codec.use_autoencoder(other.folder)
    again.codec.use_autoencoder(it.folder)
    assert again.sample({"seed": torch.arange(2)}).shape == (2, 1, 8, 8)
    assert str(it.folder) not in str(torch.load(path, weights_only=True))


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_is_not_continued_with_another_autoencoder(made, trainer, tmp_path, stored):
    it, other = made("tokens"), made("tokens", seed=1)
    run = trainer(tmp_path / "run", 1)
    run.fit(it.stage(VQTokens(it.folder, stored=stored)), datamodule=it.data(stored))
    run.save_checkpoint(tmp_path / "it.ckpt")
    stage, data = other.stage(VQTokens(other.folder, stored=stored)), other.data(stored)
    with pytest.raises(UserError, match="the stage was trained on tokens"):
        trainer(tmp_path / "more", 2).fit(stage, datamodule=data, ckpt_path=tmp_path / "it.ckpt")


def test_what_shows_samples_in_training_asks_for_the_autoencoder_at_once(made, trainer, tmp_path):
    it = made("tokens")
    run = trainer(tmp_path / "run", 1, callbacks=[SampleGrid(4)])
    with pytest.raises(UserError, match="needs its autoencoder"):
        run.fit(it.stage(VQTokens()), datamodule=it.data())


def test_tokens_take_two_bytes(made):
    store = made("tokens").store()
    assert store.columns["tokens"]["dtype"] == "uint16"
    assert store.columns["tokens"]["count"] == 12
    assert store.whole("tokens").max() < 12
    assert isinstance(store, Store)

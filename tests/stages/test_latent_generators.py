"""Generators of tokens and latents: equal losses from a store and from images, and a check of the autoencoder."""

import pytest
import torch

from helpers.autoencoders import save_kl, save_vq
from rcg_lightning.callbacks.prediction_writer import predict_store
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
CODECS = {"tokens": (VQTokens, None), "latents": (VQLatents, VQGAN), "kl": (KLLatents, None)}


@pytest.fixture
def latent_space(tmp_path, make_stage, trainer):
    """Create an autoencoder, data with and without its store, and stages for its codec."""

    class LatentSpace:
        def __init__(self, name, seed=0):
            self.codec, network = CODECS[name]
            self.folder = tmp_path / f"{name}{seed}"
            if name == "kl":
                save_kl(self.folder, seed, channels=1)
            else:
                save_vq(self.folder, network, seed)

        def store(self, split="train"):
            """Extract two views of each training image, or one of each evaluation image."""
            codec, data = self.codec(self.folder), ImageDataModule(Digits(limit=64), batch_size=32, views=FLIPPED)
            extraction, path = Extraction(None, [codec]), tmp_path / f"{self.folder.name}-{split}-store"
            identity = {**data.store_identity(split), **extraction.identities}
            size = len(data.images(split))
            writer = StoreWriter(path, size, data.view_count(split), 50, identity)
            fit = trainer(tmp_path, 1)
            data.extract(split, writer.pending())
            return predict_store(fit, extraction, data, writer, extraction.columns(data.spec.image))

        def data(self, stored=True):
            paths = [self.store().path] if stored else []
            eval_paths = [self.store("eval").path] if stored else []
            source = Digits(limit=64)
            return ImageDataModule(source, batch_size=32, views=FLIPPED, stores=paths, eval_stores=eval_paths)

        def stage(self, codec, **more):
            if self.codec is not VQTokens:
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

    return LatentSpace


class Losses(SampleGrid):
    """Records the losses of training and validation."""

    def __init__(self):
        super().__init__(4)
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


@pytest.mark.parametrize("name", CODECS)
def test_losses_from_a_store_and_from_images_are_equal(latent_space, trainer, tmp_path, name):
    """On the same views: the mirrored image is encoded; the latent is not mirrored."""
    space, losses = latent_space(name), []
    for stored in (True, False):
        stage, callback = space.stage(space.codec(space.folder, stored=stored)), Losses()
        run = trainer(tmp_path / str(stored), 3, callbacks=[callback])
        torch.manual_seed(0)
        run.fit(stage, datamodule=space.data(stored))
        losses.append(callback.losses)
        assert stage.spec.identities[space.codec.column] == space.codec(space.folder).identity
    assert len(losses[0]) >= 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_mirrored_image_is_encoded_itself(latent_space):
    space = latent_space("latents")
    latents = torch.from_numpy(space.store().whole("latent"))
    assert latents.shape == (64, 2, 4, 4, 4)
    image = torch.from_numpy(Digits(limit=64).train().array[:]).float() / 255
    codec = space.codec(space.folder)
    torch.testing.assert_close(latents[:, 0], codec.encoded(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents[:, 1], codec.encoded(image.flip(3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latents[:, 1], latents[:, 0].flip(3), atol=1e-2)


def test_training_from_a_store_needs_no_autoencoder_and_sampling_needs_the_right_one(latent_space, tmp_path, save):
    space, other = latent_space("tokens"), latent_space("tokens", seed=1)
    stage = space.stage(VQTokens()).build(space.data().spec)
    path = save(stage, tmp_path / "tokens.ckpt")
    with pytest.raises(UserError, match="--autoencoder"):
        stage.sample({"seed": torch.arange(2)})
    again = Generator.load(path)
    with pytest.raises(UserError, match="autoencoder"):
        again.codec.use_autoencoder(other.folder)
    again.codec.use_autoencoder(space.folder)
    assert again.sample({"seed": torch.arange(2)}).shape == (2, 1, 8, 8)
    assert str(space.folder) not in str(torch.load(path, weights_only=True))


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_is_not_continued_with_another_autoencoder(latent_space, trainer, tmp_path, stored):
    space, other = latent_space("tokens"), latent_space("tokens", seed=1)
    run = trainer(tmp_path / "run", 1)
    run.fit(space.stage(VQTokens(space.folder, stored=stored)), datamodule=space.data(stored))
    run.save_checkpoint(tmp_path / "tokens.ckpt")
    stage, data = other.stage(VQTokens(other.folder, stored=stored)), other.data(stored)
    with pytest.raises(UserError, match="trained on tokens"):
        trainer(tmp_path / "more", 2).fit(stage, datamodule=data, ckpt_path=tmp_path / "tokens.ckpt")


def test_a_sample_grid_needs_the_autoencoder_at_the_start(latent_space, trainer, tmp_path):
    space = latent_space("tokens")
    run = trainer(tmp_path / "run", 1, callbacks=[SampleGrid(4)])
    with pytest.raises(UserError, match="autoencoder"):
        run.fit(space.stage(VQTokens()), datamodule=space.data())


def test_tokens_take_two_bytes(latent_space):
    store = latent_space("tokens").store()
    assert store.columns["tokens"]["dtype"] == "uint16"
    assert store.columns["tokens"]["count"] == 12
    assert store.whole("tokens").max() < 12
    assert isinstance(store, Store)

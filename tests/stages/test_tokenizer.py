"""A small tokenizer of the digits, with and without an adversary."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from helpers.killed_run import KillAtStep, Killed
from rcg_lightning.core.adversarial import GradientPenalty, Hinge, adaptive_weight
from rcg_lightning.core.precision import float32_precision
from rcg_lightning.errors import UserError
from rcg_lightning.networks.discriminators import PatchDiscriminator
from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN
from rcg_lightning.pretrained.autoencoders import VQAutoencoder
from rcg_lightning.pretrained.perceptual import PerceptualLoss
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.codebook import CodebookTraining, EMACodebook
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.tokenizer import Adversary, TokenizerStage
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8))


def adversary(start=0, **settings):
    return Adversary(PatchDiscriminator(4, 1), AdamW(1e-3), start=start, **settings)


def tokenizer(kind=MaskGITVQGAN, **settings):
    network = kind(channels=1, width=8, multipliers=(1, 2), blocks=1, codes=12, dim=4, groups=4)
    given = {"optimizer": AdamW(3e-3), "codebook": CodebookTraining(patience=5)}
    return TokenizerStage(network, **given | settings)


def batch(n=8):
    torch.manual_seed(3)
    return {"image": torch.rand(n, 1, 8, 8), "index": torch.arange(n)}


class Brightness(PerceptualLoss):
    def setup(self, shape):
        self.shape = shape

    def __call__(self, reconstruction, original):
        return (reconstruction.mean() - original.mean()).square()


@pytest.mark.parametrize("kind", [MaskGITVQGAN, VQGAN])
def test_losses_agree_with_those_by_hand(kind):
    stage = tokenizer(kind, l1_weight=0.5, l2_weight=2.0, perceptual=Brightness(), perceptual_weight=3.0).build(SPEC)
    image = batch()["image"]
    losses = stage.autoencoder_losses(batch())
    low, high = stage.network.image_range
    z = stage.network.encode(low + (high - low) * image)
    chosen, indices = stage.network.quantise(z)
    reconstruction = (stage.network.decode(chosen) - low) / (high - low)
    error = reconstruction - image
    expected = {
        "reconstruction": 0.5 * error.abs().mean() + 2 * error.square().mean(),
        "perceptual": 3 * (reconstruction.mean() - image.mean()).square(),
        "commitment": 0.25 * (z - chosen).square().mean(),
        "codebook": (z - chosen).square().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss"], sum(expected.values()), rtol=1e-4, atol=1e-6)
    assert 1 <= float(losses["perplexity"]) <= 12
    stage.eval()
    psnr = -10 * (stage.reconstruct(image) - image).square().flatten(1).mean(1).log10().mean()
    assert float(stage.losses(batch())["psnr"]) == pytest.approx(float(psnr), rel=1e-4)
    assert torch.equal(stage.predict_step(batch(), 0)["tokens"], indices.flatten(1))


def test_the_gradient_passes_straight_through_the_quantisation():
    stage = tokenizer(codebook=EMACodebook()).build(SPEC)
    stage.codebook.commitment = 0.0
    stage.autoencoder_losses(batch())["loss"].backward()
    with_gradient = [
        name for name, p in stage.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    ]
    assert any(name.startswith("encoder") for name in with_gradient)
    assert stage.network.codebook.weight.grad is None


def test_the_nearest_codes_are_found_in_full_float32(monkeypatch):
    stage, seen = tokenizer().build(SPEC), []

    def quantise(z):
        product = z.flatten(1) @ z.flatten(1).T
        seen.append((z.dtype, product.dtype, torch.backends.cuda.matmul.allow_tf32))
        return z, z

    monkeypatch.setattr(stage.network, "quantise", quantise)
    with torch.autocast("cpu", torch.bfloat16), float32_precision("high"):
        stage.encode(batch()["image"])
    assert seen == [(torch.float32, torch.float32, False)]


def test_the_adversarial_weight_balances_the_gradients():
    stage = tokenizer(adversary=adversary(weight=0.5)).build(SPEC)
    given = batch()
    losses = stage.autoencoder_losses(given)
    z, chosen, _ = stage.encode(given["image"])
    reconstruction = stage.decode(z + (chosen - z).detach())
    adversarial = Hinge().generator(stage.discriminate(reconstruction))
    error = (reconstruction - given["image"]).abs().mean()
    weight = adaptive_weight(error, adversarial, stage.network.decoder.out_conv.weight)
    torch.testing.assert_close(losses["adversarial"], 0.5 * weight * adversarial, rtol=1e-3, atol=1e-6)
    loss = stage.discriminator_losses(given)["loss"]  # of the same reconstruction
    fake, real = stage.discriminate(torch.cat([reconstruction, given["image"]])).chunk(2)
    torch.testing.assert_close(loss, Hinge().discriminator(real, fake), rtol=1e-4, atol=1e-6)
    assert not stage._reconstructions
    assert not any(p.grad is not None for p in stage.network.parameters())


@pytest.mark.parametrize("codebook", [CodebookTraining(patience=4), EMACodebook(decay=0.9, patience=4)])
def test_training_improves_reconstructions_and_exports_the_network(codebook, tmp_path, trainer, digits):
    stage = tokenizer(codebook=codebook, l2_weight=1.0)
    first = trainer(tmp_path / "first", 1)
    first.fit(tokenizer(codebook=type(codebook)()), digits())
    fit = trainer(tmp_path / "run", 40, val_check_interval=40)
    fit.fit(stage, digits())
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert metrics["val/psnr"] > float(first.callback_metrics["val/psnr"]) + 1
    assert metrics["val/usage"] > 0.9
    assert 6 < metrics["val/perplexity"] <= 12
    assert {"train/loss", "train/reconstruction", "train/commitment", "train/perplexity"} <= metrics.keys()
    exported = VQAutoencoder(tmp_path / "run" / "tokenizer")
    again = Stage.load(tmp_path / "run" / "last.ckpt")
    tokens = exported.tokens(batch()["image"])
    assert torch.equal(tokens, again.predict_step(batch(), 0)["tokens"])


def test_the_adversary_starts_later_and_is_logged(tmp_path, trainer, digits):
    class RecordWeights(Callback):
        def on_train_batch_end(self, trainer, stage, *_):
            weights.append(stage.discriminator.net[0].weight.detach().clone())

    weights = []
    stage = tokenizer(adversary=adversary(start=2, penalty=GradientPenalty(1.0, every=2)), accumulate=2)
    fit = trainer(tmp_path, 4, callbacks=[RecordWeights()])
    fit.fit(stage, digits())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    logged = {"discriminator_loss", "discriminator_real_accuracy", "discriminator_penalty", "adversarial"}
    assert {f"train/{name}" for name in logged} <= fit.callback_metrics.keys()
    assert fit.global_step == 4


def test_a_killed_run_continues_to_the_last_bit(tmp_path, trainer, digits):
    def run(folder, resume=None, **settings):
        stage = tokenizer(codebook=EMACodebook(patience=2), adversary=adversary(start=2))
        trainer(tmp_path / folder, 6, checkpoint_every=3, **settings).fit(stage, digits(), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["state_dict"]

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", callbacks=[KillAtStep(4)])
    resumed = run("killed", resume=tmp_path / "killed" / "last.ckpt")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = tokenizer().build(SPEC).state_dict()
    torch.manual_seed(2)
    second = tokenizer().build(SPEC).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_unsuitable_settings_are_named():
    with pytest.raises(UserError, match="channels"):
        tokenizer().build(DataSpec((3, 8, 8)))
    with pytest.raises(UserError, match="l1_weight"):
        tokenizer(l1_weight=0.0)
    with pytest.raises(UserError, match="layers"):
        tokenizer(adversary=Adversary(PatchDiscriminator(4, 3), AdamW(1e-3))).build(SPEC)

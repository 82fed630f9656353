"""Training of a vector-quantised autoencoder: the tokenizer of masked and latent generators."""

from collections import deque
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rcg_lightning.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt
from rcg_lightning.config import ConfigMixin, construct, describe
from rcg_lightning.core.adversarial import AdversarialLoss, GradientPenalty, Hinge, accuracy, adaptive_weight
from rcg_lightning.networks.adversarial import DiscriminatorNetwork
from rcg_lightning.networks.vqgan import VQNetwork
from rcg_lightning.pretrained.autoencoders import autoencoder_settings, quantised
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.perceptual import PerceptualLoss
from rcg_lightning.stages.alternating import AlternatingStage, OptimizedNetwork
from rcg_lightning.stages.codebook import CodebookTraining, perplexity
from rcg_lightning.stages.distributed import all_reduce_mean, all_reduce_sum
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, DataSpec, require


class Adversary(ConfigMixin):
    """A discriminator of reconstructions and the weight of its loss.

    Args:
        discriminator: of images in [-1, 1], without condition.
        optimizer: its optimizer.
        loss: adversarial loss of both networks; ``Hinge`` by default.
        weight: weight of the autoencoder's adversarial loss.
        start: first step with the adversarial loss; the autoencoder should reconstruct well by then.
        adaptive: scale the weight so that, at the decoder's last layer, the gradients of adversarial and
            reconstruction loss have the same norm.
        penalty: gradient penalty of the discriminator on real images.
    """

    def __init__(
        self,
        discriminator: DiscriminatorNetwork,
        optimizer: Optimizer,
        loss: AdversarialLoss | None = None,
        weight: NonNegativeFloat = 0.8,
        start: NonNegativeInt = 0,
        adaptive: bool = True,
        penalty: GradientPenalty | None = None,
    ) -> None:
        self.discriminator, self.optimizer, self.loss = discriminator, optimizer, loss or Hinge()
        self.weight, self.start, self.adaptive, self.penalty = weight, start, adaptive, penalty


class TokenizerStage(AlternatingStage):
    """Trains encoder, codebook and decoder to reconstruct images, optionally against a discriminator.

    The decoder's gradient is passed straight through the quantisation to the encoder. Losses are of images in [0, 1].
    The autoencoder is updated first. The discriminator then reads the reconstructions of that update, so there is one
    forward pass (the official code makes three).

    Validation logs PSNR, the share of codes in use and their perplexity on the evaluation images; the callback
    ``Reconstructions`` adds the Fréchet distance and a grid. The end of training writes the network to ``tokenizer/``
    in the trainer's root folder, for the codecs.

    Args:
        network: the autoencoder.
        optimizer: optimizer of the autoencoder.
        codebook: training of the codes; by gradient by default.
        l1_weight: weight of the mean absolute error.
        l2_weight: weight of the mean squared error.
        perceptual: distance in the features of a frozen network; None for none.
        perceptual_weight: weight of this distance.
        adversary: None trains without one, which is best for few and small images.
        accumulate: parts of a batch whose gradients are added up.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        network: VQNetwork,
        optimizer: Optimizer,
        codebook: CodebookTraining | None = None,
        l1_weight: NonNegativeFloat = 1.0,
        l2_weight: NonNegativeFloat = 0.0,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: NonNegativeFloat = 1.0,
        adversary: Adversary | None = None,
        accumulate: PositiveInt = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        require(l1_weight > 0 or l2_weight > 0, "TokenizerStage: l1_weight or l2_weight must be positive")
        self.network, self.codebook = network, codebook or CodebookTraining()
        self.l1_weight, self.l2_weight = l1_weight, l2_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.adversary, self.accumulate = adversary, accumulate
        self.register_buffer("code_counts", torch.zeros(network.codes), persistent=False)  # of a validation
        self._reconstructions: deque[Tensor] = deque()  # waiting for the discriminator's update in this step

    code_counts: Tensor

    def build_networks(self, spec: DataSpec) -> None:
        # created again, so that the initial weights depend on the seed alone
        self.network = construct(describe(self.network))
        self._arguments |= {"network": self.network}
        self.network.shape(spec.image)  # raises where the images do not fit
        self.codebook.build(self.network.codebook.weight)
        if self.adversary is not None:
            self.discriminator = construct(describe(self.adversary.discriminator))
            self.discriminator.build(spec.image, 0)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.perceptual is not None and stage == "fit":
            assert self.spec is not None
            self.perceptual.setup(self.spec.image)

    def networks(self) -> list[nn.Module]:
        # a penalty differentiates twice, which compiled networks cannot
        compilable = self.adversary is not None and self.adversary.penalty is None
        return [self.network.encoder, self.network.decoder, *([self.discriminator] if compilable else [])]

    # -- training ------------------------------------------------------------------------------------------------------

    def optimized_networks(self) -> list[OptimizedNetwork]:
        networks = [OptimizedNetwork("autoencoder", [self.network], self.optimizer, self.autoencoder_losses)]
        if self.adversary is not None:
            modules, optimizer, start = [self.discriminator], self.adversary.optimizer, self.adversary.start
            networks.append(
                OptimizedNetwork("discriminator", modules, optimizer, self.discriminator_losses, start=start)
            )
        return networks

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.autoencoder_losses(batch)

    def autoencoder_losses(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"]
        z, chosen, indices = self.encode(image)
        reconstruction = self.decode(z + (chosen - z).detach())  # (B, C, H, W), not clamped
        outputs, codes = (_flatten_grid(latent).float() for latent in (z, chosen))  # (B h w, D) each
        error = self.l1_weight * F.l1_loss(reconstruction, image) + self.l2_weight * F.mse_loss(reconstruction, image)
        terms = {"reconstruction": error}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, image)
        reconstruction_loss = torch.stack(list(terms.values())).sum()
        terms |= self.codebook.losses(outputs, codes)
        loss = torch.stack(list(terms.values())).sum()
        counts = torch.zeros_like(self.code_counts).index_add_(0, indices.flatten(), torch.ones_like(outputs[:, 0]))
        if not self.training:
            self.code_counts += counts
            error = (reconstruction.clamp(0, 1) - image).square().flatten(1).mean(1)
            return {"loss": loss, **terms, "psnr": -10 * error.clamp(min=1e-10).log10().mean()}
        self.codebook.observe(outputs, indices.flatten())
        if self.adversary is not None and self.steps >= self.adversary.start:
            terms["adversarial"] = self._adversarial_loss(self.adversary, reconstruction, reconstruction_loss)
            loss = loss + terms["adversarial"]
            self._reconstructions.append(reconstruction.detach())
        return {"loss": loss, **terms, "perplexity": perplexity(counts)}

    def _adversarial_loss(self, adversary: Adversary, reconstruction: Tensor, reconstruction_loss: Tensor) -> Tensor:
        """Return the weighted adversarial loss of the autoencoder."""
        loss, weight = adversary.loss.generator(self.discriminate(reconstruction)), 1.0
        if adversary.adaptive:
            last_layer = self.network.decoder.out_conv.weight
            weight = adaptive_weight(reconstruction_loss, loss, last_layer, all_reduce_mean)  # type: ignore
        return adversary.weight * weight * loss

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.adversary is not None
        real, fake = batch["image"], self._reconstructions.popleft()
        fake_logits, real_logits = self.discriminate(torch.cat([fake, real.to(fake.dtype)])).chunk(2)
        losses = {
            "loss": self.adversary.loss.discriminator(real_logits, fake_logits),
            "real_accuracy": accuracy(real_logits, True),
            "fake_accuracy": accuracy(fake_logits, False),
        }
        penalty = self.adversary.penalty
        if penalty is not None and penalty.due(self.steps):
            real = real.detach().requires_grad_()
            losses["penalty"] = penalty(self.discriminate(real), real)
            losses["loss"] = losses["loss"] + losses["penalty"]
        return losses

    def discriminate(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the discriminator's logits."""
        return self.discriminator(2 * image - 1, image.new_zeros(len(image), 0))

    def step_state(self) -> list[Tensor]:
        return [*super().step_state(), self.network.codebook.weight]  # after_step writes to it

    def after_step(self) -> None:
        self.codebook.after_step(self.network.codebook.weight, self.steps)
        self.guard.restore_buffers()

    # -- encoding and decoding -----------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [0, 1] -> latents z (B, D, h, w), their nearest codes, and the indices of the codes (B, h, w)."""
        low, high = self.network.image_range
        z = self.network.encode(low + (high - low) * image)
        return z, *quantised(self.network, z)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> images around [0, 1]."""
        low, high = self.network.image_range
        return (self.network.decode(z).float() - low) / (high - low)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> their reconstructions in [0, 1]."""
        return self.decode(self.encode(image)[1]).clamp(0, 1)

    # -- validation and export -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.code_counts.zero_()

    def on_validation_epoch_end(self) -> None:
        all_reduce_sum([self.code_counts])
        usage = (self.code_counts > 0).float().mean()
        self.log_dict({"val/usage": usage, "val/perplexity": perplexity(self.code_counts)})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the tokens of each image, row by row of the grid."""
        return {"tokens": self.encode(batch["image"])[2].flatten(1)}

    @rank_zero_only
    def on_fit_end(self) -> None:
        if not getattr(self.trainer, "fast_dev_run", False):
            self.export(Path(self.trainer.default_root_dir) / "tokenizer")

    def export(self, folder: Path) -> None:
        """Write the network as a folder that the codecs read."""
        save_network(folder, self.network, autoencoder_settings(self.network))


def _flatten_grid(latent: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D)."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)

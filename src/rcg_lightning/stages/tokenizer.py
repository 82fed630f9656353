"""Training of a vector-quantising autoencoder on one's own data: the tokenizer of masked and latent generators."""

from collections import deque
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin, construct, describe
from rcg_lightning.core.adversarial import AdversarialLoss, GradientPenalty, Hinge, accuracy, adaptive_weight
from rcg_lightning.networks.adversarial import DiscriminatorNetwork
from rcg_lightning.networks.vqgan import VQNetwork
from rcg_lightning.pretrained.autoencoders import autoencoder_settings
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.perceptual import PerceptualLoss
from rcg_lightning.stages.alternating import AlternatingStage, OptimizedNetwork
from rcg_lightning.stages.codebook import CodebookTraining, perplexity
from rcg_lightning.stages.distributed import add_up, average
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, DataSpec, require


class Adversary(ConfigMixin):
    """A discriminator that reconstructions have to pass, and how much that counts.

    Args:
        discriminator: of images in [-1, 1], without condition.
        optimizer: its optimizer.
        loss: what both minimise; ``Hinge`` by default.
        weight: of the autoencoder's part, after it was made to pull as hard as the reconstruction where ``adaptive``.
        since: first step in which it plays; the autoencoder should know the images by then.
        adaptive: whether the weight is relative to the reconstruction's pull at the decoder's last layer.
        penalty: gradient penalty of the discriminator on real images.
    """

    def __init__(
        self,
        discriminator: DiscriminatorNetwork,
        optimizer: Optimizer,
        loss: AdversarialLoss | None = None,
        weight: float = 0.8,
        since: int = 0,
        adaptive: bool = True,
        penalty: GradientPenalty | None = None,
    ) -> None:
        require(since >= 0, f"an adversary plays from a step on, 0 or later, not {since}")
        self.discriminator, self.optimizer, self.loss = discriminator, optimizer, loss or Hinge()
        self.weight, self.since, self.adaptive, self.penalty = weight, since, adaptive, penalty


class TokenizerStage(AlternatingStage):
    """Trains encoder, codebook and decoder to give images back, and an adversary where there is one.

    The decoder's gradient goes straight through the quantisation to the encoder. Losses are of images in [0, 1]. The
    autoencoder moves first; the adversary then looks at the very reconstructions that it has just moved by, so that
    there is one forward pass (the official code makes three).

    Validation logs PSNR, the share of codes in use and their perplexity on the evaluation images; the callback
    ``Reconstructions`` adds the Fréchet distance and a grid. At the end of training the network is written to
    ``tokenizer/`` in the trainer's root folder, for the codecs.

    Args:
        network: the autoencoder.
        optimizer: of the autoencoder.
        codebook: how the codes move; by gradient unless told otherwise.
        absolute: weight of the mean absolute error.
        squared: weight of the mean squared error.
        perceptual: distance to a frozen network's eyes.
        perceptual_weight: of it.
        adversary: None trains without one, which is best where images are few and small.
        accumulate: parts of a batch whose gradients are added up.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        network: VQNetwork,
        optimizer: Optimizer,
        codebook: CodebookTraining | None = None,
        absolute: float = 1.0,
        squared: float = 0.0,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        adversary: Adversary | None = None,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        require(absolute > 0 or squared > 0, "TokenizerStage: absolute or squared error must have a weight")
        self.network, self.codebook = network, codebook or CodebookTraining()
        self.absolute, self.squared = absolute, squared
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.adversary, self.accumulate = adversary, accumulate
        self.register_buffer("used", torch.zeros(network.codes), persistent=False)  # codes, during validation
        self._made: deque[Tensor] = deque()  # reconstructions that the adversary has yet to see in this step

    used: Tensor

    def build_networks(self, spec: DataSpec) -> None:
        # made again, so that the initial weights depend on nothing but the seed
        self.network = construct(describe(self.network))
        self._arguments |= {"network": self.network}
        self.network.shape(spec.image)  # rejects images that do not fit
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
        judging = [] if self.adversary is None or self.adversary.penalty is not None else [self.discriminator]
        return [self.network.encoder, self.network.decoder, *judging]  # a penalty differentiates twice: not compiled

    # -- training ------------------------------------------------------------------------------------------------------

    def optimized_networks(self) -> list[OptimizedNetwork]:
        optimized_networks = [OptimizedNetwork("autoencoder", [self.network], self.optimizer, self.autoencoder_losses)]
        if self.adversary is not None:
            optimizer, since = self.adversary.optimizer, self.adversary.since
            discriminate = [self.discriminator]
            optimized_networks.append(
                OptimizedNetwork("discriminator", discriminate, optimizer, self.discriminator_losses, since=since)
            )
        return optimized_networks

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.autoencoder_losses(batch)

    def autoencoder_losses(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"]
        z, chosen, indices = self.encode(image)
        made = self.decode(z + (chosen - z).detach())  # (B, C, H, W), not clamped
        outputs, codes = (_rows(latent).float() for latent in (z, chosen))  # (B h w, D) each
        error = self.absolute * F.l1_loss(made, image) + self.squared * F.mse_loss(made, image)
        terms = {"reconstruction": error}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(made, image)
        given_back = torch.stack(list(terms.values())).sum()
        terms |= self.codebook.losses(outputs, codes)
        loss = torch.stack(list(terms.values())).sum()
        counts = torch.zeros_like(self.used).index_add_(0, indices.flatten(), torch.ones_like(outputs[:, 0]))
        if not self.training:
            self.used += counts
            error = (made.clamp(0, 1) - image).square().flatten(1).mean(1)
            return {"loss": loss, **terms, "psnr": -10 * error.clamp(min=1e-10).log10().mean()}
        self.codebook.observe(outputs, indices.flatten())
        if self.adversary is not None and self.steps >= self.adversary.since:
            terms["adversarial"] = self._fooling(self.adversary, made, given_back)
            loss = loss + terms["adversarial"]
            self._made.append(made.detach())
        return {"loss": loss, **terms, "perplexity": perplexity(counts)}

    def _fooling(self, adversary: Adversary, made: Tensor, given_back: Tensor) -> Tensor:
        """Return the weighted loss of not passing for real."""
        loss = adversary.loss.generator(self.discriminate(made))
        last = self.network.decoder.out_conv.weight
        weight = adaptive_weight(given_back, loss, last, average) if adversary.adaptive else 1.0  # type: ignore
        return adversary.weight * weight * loss

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.adversary is not None
        image, made = batch["image"], self._made.popleft()
        fakes, reals = self.discriminate(torch.cat([made, image.to(made.dtype)])).chunk(2)
        losses = {
            "loss": self.adversary.loss.discriminator(reals, fakes),
            "real_accuracy": accuracy(reals, True),
            "fake_accuracy": accuracy(fakes, False),
        }
        penalty = self.adversary.penalty
        if penalty is not None and penalty.due(self.steps):
            seen = image.detach().requires_grad_()
            losses["penalty"] = penalty(self.discriminate(seen), seen)
            losses["loss"] = losses["loss"] + losses["penalty"]
        return losses

    def discriminate(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the discriminator's logits."""
        return self.discriminator(2 * image - 1, image.new_zeros(len(image), 0))

    def after_step(self) -> None:
        self.codebook.after_step(self.network.codebook.weight, self.steps)

    # -- both ways -----------------------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [0, 1] -> latents z (B, D, h, w), the codes they choose, and the indices of these (B, h, w)."""
        low, high = self.network.image_range
        z = self.network.encode(low + (high - low) * image)
        with torch.autocast(z.device.type, enabled=False):  # the nearest code is to be the nearest
            chosen, indices = self.network.quantise(z.float())
        return z, chosen, indices

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> images around [0, 1]."""
        low, high = self.network.image_range
        return (self.network.decode(z).float() - low) / (high - low)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> what comes back of them, in [0, 1]."""
        return self.decode(self.encode(image)[1]).clamp(0, 1)

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.used.zero_()

    def on_validation_epoch_end(self) -> None:
        add_up([self.used])
        share = (self.used > 0).float().mean()
        self.log_dict({"val/usage": share, "val/perplexity": perplexity(self.used)})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The tokens of each image, row by row."""
        return {"tokens": self.encode(batch["image"])[2].flatten(1)}

    @rank_zero_only
    def on_fit_end(self) -> None:
        if not getattr(self.trainer, "fast_dev_run", False):
            self.export(Path(self.trainer.default_root_dir) / "tokenizer")

    def export(self, folder: Path) -> None:
        """Write the network as a folder that the codecs read."""
        save_network(folder, self.network, autoencoder_settings(self.network))


def _rows(latent: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D)."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)

"""Training of a codebook: the losses between codes and encoder outputs, and the re-use of unused codes."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, NonNegativeFloat, PositiveInt
from rcg_lightning.config import ConfigMixin
from rcg_lightning.stages.distributed import all_reduce_sum, is_distributed


class CodebookTraining(ConfigMixin, nn.Module):
    """Codes follow the gradient towards the encoder outputs assigned to them (van den Oord et al. 2017, eq. 3).

    A code that no output was assigned to for ``patience`` steps is replaced by an encoder output of the current batch,
    so that usage stays high. The same happens after the first step, which gives the codes the encoder's scale. All
    processes count together and choose the same outputs.

    Args:
        commitment: weight of the loss that pulls encoder outputs towards their codes.
        patience: steps over which usage is counted; None never replaces unused codes.
    """

    counts: Tensor
    trained_by_gradient = True

    def __init__(self, commitment: NonNegativeFloat = 0.25, patience: PositiveInt | None = 100) -> None:
        super().__init__()
        self.commitment, self.patience = commitment, patience
        self._outputs: Tensor | None = None  # encoder outputs (n, D) of the last part of a batch
        self._new: list[Tensor] = []  # sums over this step's batch, one for each of statistics()

    def build(self, codes: nn.Parameter) -> None:
        """Prepare for codes (K, D)."""
        codes.requires_grad_(self.trained_by_gradient)
        self.register_buffer("counts", torch.zeros(len(codes)))

    def losses(self, outputs: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """Encoder outputs (n, D) and the code of each (n, D) -> loss terms, to be summed."""
        terms = {"commitment": self.commitment * F.mse_loss(outputs, chosen.detach())}
        if self.trained_by_gradient:
            terms["codebook"] = F.mse_loss(chosen, outputs.detach())
        return terms

    @torch.no_grad()
    def observe(self, outputs: Tensor, indices: Tensor) -> None:
        """Record encoder outputs (n, D) and the index of the code of each (n,)."""
        if not self._new:
            self._new = [torch.zeros_like(statistic) for statistic in self.statistics()]
        self._new[0].index_add_(0, indices, torch.ones_like(indices, dtype=self.counts.dtype))
        self._outputs = outputs.detach().float()

    def statistics(self) -> list[Tensor]:
        """The buffers that a step's observations, summed over the processes, are added to."""
        return [self.counts]

    @torch.no_grad()
    def after_step(self, codes: Tensor, step: int) -> None:
        """Update codes (K, D) from the observations of ``step``, counted from 1."""
        all_reduce_sum(self._new)
        self.update(codes)
        self._new = []
        if self.patience is None or (step > 1 and step % self.patience):
            return
        unused = self.counts == 0
        replacements = self._random_outputs(len(codes))
        codes.copy_(torch.where(unused[:, None], replacements.to(codes.dtype), codes))
        self.reset(unused, replacements)
        self.counts.zero_()

    def update(self, codes: Tensor) -> None:
        """Apply the observations of all processes in this step."""
        self.counts += self._new[0]

    def reset(self, unused: Tensor, replacements: Tensor) -> None:
        """Reset the statistics of the codes where ``unused`` (K,), which are now ``replacements`` (K, D)."""

    def _random_outputs(self, count: int) -> Tensor:
        """Return encoder outputs (count, D) of all processes, without repetition where there are enough."""
        assert self._outputs is not None
        world = torch.distributed.get_world_size() if is_distributed() else 1
        share, own = -(-count // world), self._outputs
        index = torch.randperm(len(own), device=own.device)[torch.arange(share, device=own.device) % len(own)]
        parts = [torch.empty_like(own[index]) for _ in range(world)]
        if is_distributed():
            torch.distributed.all_gather(parts, own[index])
        else:
            parts = [own[index]]
        return torch.stack(parts, 1).flatten(0, 1)[:count]


class EMACodebook(CodebookTraining):
    """Each code is the moving average of the encoder outputs assigned to it, over all processes; it takes no gradient.

    Args:
        decay: weight of the old average at each step.
        commitment, patience: see ``CodebookTraining``.
    """

    ema_counts: Tensor
    ema_sums: Tensor
    trained_by_gradient = False

    def __init__(
        self, decay: BelowOne = 0.99, commitment: NonNegativeFloat = 0.25, patience: PositiveInt | None = 100
    ) -> None:
        super().__init__(commitment, patience)
        self.decay = decay

    def build(self, codes: nn.Parameter) -> None:
        super().build(codes)
        self.register_buffer("ema_counts", torch.ones(len(codes)))
        self.register_buffer("ema_sums", codes.detach().clone())

    @torch.no_grad()
    def observe(self, outputs: Tensor, indices: Tensor) -> None:
        super().observe(outputs, indices)
        self._new[1].index_add_(0, indices, outputs.detach().to(self.ema_sums.dtype))

    def statistics(self) -> list[Tensor]:
        return [self.counts, self.ema_sums]

    def update(self, codes: Tensor) -> None:
        super().update(codes)
        for average, new in zip((self.ema_counts, self.ema_sums), self._new, strict=True):
            average.lerp_(new, 1 - self.decay)
        means = self.ema_sums / self.ema_counts.clamp(min=1e-5)[:, None]
        codes.copy_(torch.where(self.ema_counts[:, None] > 1e-5, means, codes))  # a code long unused stays as it is

    def reset(self, unused: Tensor, replacements: Tensor) -> None:
        self.ema_counts.masked_fill_(unused, 1.0)
        self.ema_sums.copy_(torch.where(unused[:, None], replacements, self.ema_sums))


def perplexity(counts: Tensor) -> Tensor:
    """Return the perplexity of code usage from counts (K,): exp of the entropy, K where all are used equally."""
    shares = counts / counts.sum()
    return torch.special.entr(shares).sum().exp()

"""How a codebook is trained: what draws codes and encoder outputs together, and how unused codes come back."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.stages.distributed import add_up, several
from rcg_lightning.types import require


class CodebookTraining(ConfigMixin, nn.Module):
    """Codes move by gradient towards the encoder outputs that chose them (van den Oord et al. 2017, eq. 3).

    A code that nothing has chosen for some steps is put where an encoder output of the present batch lies, so that
    usage stays high; the same happens after the first step, which gives the codes the encoder's scale. All processes
    count together and choose the same outputs.

    Args:
        commitment: weight of what draws encoder outputs to their codes.
        patience: steps that are counted together; None lets unused codes be.
    """

    counts: Tensor
    moves_by_gradient = True

    def __init__(self, commitment: float = 0.25, patience: int | None = 100) -> None:
        super().__init__()
        require(patience is None or patience > 0, f"patience is at least 1 step, not {patience}")
        self.commitment, self.patience = commitment, patience
        self._outputs: Tensor | None = None  # encoder outputs (n, D) of the last part of a batch
        self._new: list[Tensor] = []  # what the parts of this step's batch add to the counts, and what a subclass adds

    def build(self, codes: nn.Parameter) -> None:
        """Get ready for codes (K, D)."""
        codes.requires_grad_(self.moves_by_gradient)
        self.register_buffer("counts", torch.zeros(len(codes)))

    def losses(self, outputs: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """Encoder outputs (n, D) and the codes that they chose (n, D) -> terms to be added up."""
        terms = {"commitment": self.commitment * F.mse_loss(outputs, chosen.detach())}
        if self.moves_by_gradient:
            terms["codebook"] = F.mse_loss(chosen, outputs.detach())
        return terms

    @torch.no_grad()
    def observe(self, outputs: Tensor, indices: Tensor) -> None:
        """Take notice of encoder outputs (n, D) and the codes that they chose, indices (n,)."""
        if not self._new:
            self._new = [torch.zeros_like(kept) for kept in self.kept()]
        self._new[0].index_add_(0, indices, torch.ones_like(indices, dtype=self.counts.dtype))
        self._outputs = outputs.detach().float()

    def kept(self) -> list[Tensor]:
        """What the processes' observations are added up for."""
        return [self.counts]

    @torch.no_grad()
    def after_step(self, codes: Tensor, step: int) -> None:
        """Let codes (K, D) follow what was observed; ``step`` counts from 1."""
        add_up(self._new)
        self.follow(codes)
        self._new = []
        if self.patience is None or (step > 1 and step % self.patience):
            return
        unused = self.counts == 0
        found = self._candidates(len(codes))
        codes.copy_(torch.where(unused[:, None], found.to(codes.dtype), codes))
        self.moved(unused, found)
        self.counts.zero_()

    def follow(self, codes: Tensor) -> None:
        """Use what was observed by all processes in this step."""
        self.counts += self._new[0]

    def moved(self, unused: Tensor, found: Tensor) -> None:
        """Called when the codes where ``unused`` (K,) have been put at ``found`` (K, D)."""

    def _candidates(self, count: int) -> Tensor:
        """Return encoder outputs (count, D) of all processes, drawn without repetition where there are enough."""
        assert self._outputs is not None
        world = torch.distributed.get_world_size() if several() else 1
        share, own = -(-count // world), self._outputs
        drawn = torch.randperm(len(own), device=own.device)[torch.arange(share, device=own.device) % len(own)]
        parts = [torch.empty_like(own[drawn]) for _ in range(world)]
        if several():
            torch.distributed.all_gather(parts, own[drawn])
        else:
            parts = [own[drawn]]
        return torch.stack(parts, 1).flatten(0, 1)[:count]


class EMACodebook(CodebookTraining):
    """Each code is the moving average of the encoder outputs that chose it, of all processes; no optimizer moves it.

    Args:
        decay: how much of the average stays at each step.
        commitment, patience: see ``CodebookTraining``.
    """

    masses: Tensor
    sums: Tensor
    moves_by_gradient = False

    def __init__(self, decay: float = 0.99, commitment: float = 0.25, patience: int | None = 100) -> None:
        super().__init__(commitment, patience)
        require(0 <= decay < 1, f"decay lies in [0, 1), not {decay}")
        self.decay = decay

    def build(self, codes: nn.Parameter) -> None:
        super().build(codes)
        self.register_buffer("masses", torch.ones(len(codes)))
        self.register_buffer("sums", codes.detach().clone())

    @torch.no_grad()
    def observe(self, outputs: Tensor, indices: Tensor) -> None:
        super().observe(outputs, indices)
        self._new[1].index_add_(0, indices, outputs.detach().to(self.sums.dtype))

    def kept(self) -> list[Tensor]:
        return [self.counts, self.sums]

    def follow(self, codes: Tensor) -> None:
        super().follow(codes)
        for average, new in zip((self.masses, self.sums), self._new, strict=True):
            average.lerp_(new, 1 - self.decay)
        means = self.sums / self.masses.clamp(min=1e-5)[:, None]
        codes.copy_(torch.where(self.masses[:, None] > 1e-5, means, codes))  # one that is long unused stays

    def moved(self, unused: Tensor, found: Tensor) -> None:
        self.masses.masked_fill_(unused, 1.0)
        self.sums.copy_(torch.where(unused[:, None], found, self.sums))


def perplexity(counts: Tensor) -> Tensor:
    """Return how many codes would be in use if all were used alike, for uses (K,): exp of the entropy."""
    shares = counts / counts.sum()
    return torch.special.entr(shares).sum().exp()

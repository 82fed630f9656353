"""Embedding of a raw condition for a network. Only this file knows the null condition and the drop probability."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, NonNegativeFloat, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError
from rcg_lightning.networks.embedding_layers import Maps
from rcg_lightning.types import Classes, Part, Raw, Vector, require


class PartEmbedding(nn.Module):
    """Embed one part of a condition; dropped examples get the null embedding of this part."""

    @abstractmethod
    def forward(self, raw: Tensor, dropped: Tensor | None) -> Tensor:
        """Raw part (n, …), dropped (n,) bool or None -> (n, dim)."""

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """Return the embedding of "no condition", (n, dim)."""


class ClassEmbedding(PartEmbedding):
    """A table with a row for each class, and one more for null if conditions are dropped (DiT's layout)."""

    def __init__(self, part: Classes, dim: int, droppable: bool, maps: Maps) -> None:
        super().__init__()
        self.count = part.count
        self.table = maps.table(part.count + droppable, dim)

    def forward(self, raw: Tensor, dropped: Tensor | None) -> Tensor:
        if dropped is not None:
            raw = torch.where(dropped, self.count, raw)
        return self.table(raw)

    def null(self, n: int) -> Tensor:
        row = torch.full((1,), self.count, device=self.table.weight.device)  # made there: copies make the host wait
        return self.table(row).expand(n, -1)


class VectorProjection(PartEmbedding):
    """A linear layer. Null is a learned vector that replaces the raw one before the layer, as in the official code."""

    def __init__(self, part: Vector, dim: int, droppable: bool, maps: Maps) -> None:
        super().__init__()
        self.linear = maps.linear(part.dim, dim)
        self.fake = nn.Parameter(torch.randn(1, part.dim) * 0.02) if droppable else None

    def forward(self, raw: Tensor, dropped: Tensor | None) -> Tensor:
        if dropped is not None and self.fake is not None:
            raw = torch.where(dropped[:, None], self.fake.to(raw.dtype), raw)
        return self.linear(raw)

    def null(self, n: int) -> Tensor:
        assert self.fake is not None
        return self.linear(self.fake).expand(n, -1)


class VectorItself(PartEmbedding):
    """The unchanged vector, for a network with its own projection (the official LDM's context). Null is learned."""

    def __init__(self, part: Vector, droppable: bool) -> None:
        super().__init__()
        self.fake = nn.Parameter(torch.randn(1, part.dim) * 0.02) if droppable else None

    def forward(self, raw: Tensor, dropped: Tensor | None) -> Tensor:
        if dropped is None or self.fake is None:
            return raw
        return torch.where(dropped[:, None], self.fake.to(raw.dtype), raw)

    def null(self, n: int) -> Tensor:
        assert self.fake is not None
        return self.fake.expand(n, -1)


class Conditioner(ConfigMixin, nn.Module):
    """Embed a raw condition of any number of parts; the parts' embeddings are added or concatenated.

    Without parts the embedding is (n, 0).

    Args:
        dim: width of the embedding; None for the network's natural width. A list gives each part its own width; the
            embeddings are then concatenated in the order of the parts (IC-GAN), not added.
        drop: probability in training of replacing the whole condition by null, which guidance needs.
        noise: standard deviation of noise added to vectors in training, so that the network tolerates generated
            representations.
        project: whether vectors pass a linear layer; otherwise the embedding is as wide as the vector.
        zero_start: whether that layer starts at zero, so that the vector has no effect at first (the official ADM).
        maps: kind of linear layers and tables; None for torch's own.
    """

    def __init__(
        self,
        dim: Width | list[Width] | None = None,
        drop: BelowOne = 0.1,
        noise: NonNegativeFloat = 0.0,
        project: bool = True,
        zero_start: bool = False,
        maps: Maps | None = None,
    ) -> None:
        super().__init__()
        require(project or not zero_start, "conditioner.zero_start needs a projection: set conditioner.project to true")
        self.dim, self.drop, self.noise, self.project, self.zero_start = dim, drop, noise, project, zero_start
        self.maps = maps or Maps()
        fits = type(self.maps) is Maps or not zero_start
        require(fits, "conditioner.zero_start needs torch's own linear layers: set conditioner.maps to null")
        self.parts = nn.ModuleList()

    def build(self, parts: tuple[Part, ...], natural_dim: int) -> int:
        """Create the embeddings and return the width of the output of ``forward``."""
        widths = self._widths(parts, natural_dim)
        self.parts.extend(self._embedding(part, width) for part, width in zip(parts, widths))
        if not parts:
            return 0
        return sum(widths) if isinstance(self.dim, list) else widths[0]

    def _widths(self, parts: tuple[Part, ...], natural_dim: int) -> list[int]:
        """Return the width of each part's embedding."""
        if not isinstance(self.dim, list) or not parts:
            return [self._width(parts, natural_dim)] * len(parts)
        fits = len(self.dim) == len(parts)
        require(fits, f"conditioner.dim has {len(self.dim)} widths, the condition has {len(parts)} parts: {parts}")
        for part, width in zip(parts, self.dim):
            fits = self.project or not isinstance(part, Vector) or part.dim == width
            require(fits, f"without projection {part} keeps its width: conditioner.dim cannot change it to {width}")
        return self.dim

    def _width(self, parts: tuple[Part, ...], natural_dim: int) -> int:
        """Return the common width of embeddings that are added."""
        dim = None if isinstance(self.dim, list) else self.dim
        vectors = {part.dim for part in parts if isinstance(part, Vector)}
        if self.project or not vectors:
            return dim or natural_dim
        fits = len(vectors) == 1 and dim in (None, *vectors)
        sizes = " and ".join(map(str, sorted(vectors)))
        require(fits, f"without projection the embedding has the vector's width, {sizes}: set conditioner.dim to null")
        return vectors.pop()

    def _embedding(self, part: Part, dim: int) -> PartEmbedding:
        droppable = self.drop > 0
        if isinstance(part, Classes):
            return ClassEmbedding(part, dim, droppable, self.maps)
        if not self.project:
            return VectorItself(part, droppable)
        projection = VectorProjection(part, dim, droppable, self.maps)
        if self.zero_start:
            nn.init.zeros_(projection.linear.weight)
            nn.init.zeros_(projection.linear.bias)
        return projection

    def _joined(self, embeddings: list[Tensor]) -> Tensor:
        """Embeddings of the parts, each (n, width) -> (n, D)."""
        if isinstance(self.dim, list):
            return torch.cat(embeddings, dim=1)
        return torch.stack(embeddings).sum(0)

    def forward(self, raw: Raw, n: int) -> Tensor:
        """Raw condition of n examples -> (n, D)."""
        if not self.parts:
            return torch.zeros(n, 0)
        dropped = None
        if self.training and self.drop > 0:
            dropped = torch.rand(n, device=raw[0].device) < self.drop
        if self.training and self.noise > 0:
            raw = tuple(r + self.noise * torch.randn_like(r) if r.is_floating_point() else r for r in raw)
        return self._joined([embed(part, dropped) for embed, part in zip(self.parts, raw, strict=True)])

    def null(self, n: int) -> Tensor:
        """Return the embedding of "no condition", (n, D).

        Raises:
            UserError: the condition was never dropped in training, so there is no null embedding for guidance.
        """
        if not self.parts or self.drop == 0:
            reason = "has no condition" if not self.parts else "was trained with drop 0 and has no null condition"
            raise UserError(f"this model {reason}: it cannot be guided, use guidance scale 1")
        return self._joined([part.null(n) for part in self.parts])  # type: ignore[operator]

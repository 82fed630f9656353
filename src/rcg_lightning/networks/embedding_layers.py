"""The linear maps and tables that embed a condition, for a ``Conditioner`` to be made of."""

from torch import nn

from rcg_lightning.config import ConfigMixin


class Maps(ConfigMixin):
    """Torch's own linear maps, and tables that start small (DiT's layout)."""

    def linear(self, dim_in: int, dim: int) -> nn.Linear:
        """Return a map (n, dim_in) -> (n, dim)."""
        return nn.Linear(dim_in, dim)

    def table(self, count: int, dim: int) -> nn.Embedding:
        """Return a map (n,) int64 in [0, count) -> (n, dim)."""
        table = nn.Embedding(count, dim)
        nn.init.normal_(table.weight, std=0.02)
        return table

"""The linear layers and tables that a ``Conditioner`` embeds a condition with."""

from torch import nn

from rcg_lightning.config import ConfigMixin


class Maps(ConfigMixin):
    """Torch's own linear layers, and tables with small initial values as in DiT."""

    def linear(self, dim_in: int, dim: int) -> nn.Linear:
        """Return a layer (n, dim_in) -> (n, dim)."""
        return nn.Linear(dim_in, dim)

    def table(self, count: int, dim: int) -> nn.Embedding:
        """Return a layer (n,) int64 in [0, count) -> (n, dim)."""
        table = nn.Embedding(count, dim)
        nn.init.normal_(table.weight, std=0.02)
        return table

"""A workload that takes no time."""

import torch

from rcg_lightning.bench.workload import OfficialCost, Variants, Workload


class Matmuls(Workload):
    """Two 8 x 8 matmuls for each of three items."""

    name = "matmuls, small"

    @property
    def official(self):
        return {"same work": OfficialCost(1.0, 2.0)}

    def prepare(self, device, execution=None):
        a = torch.ones(6, 8, 8, device=device)
        return Variants(
            lambda: a @ a, 3, lambda: (a @ a, a @ a), None, lambda: [a @ a for _ in range(4)], lambda: a @ a
        )

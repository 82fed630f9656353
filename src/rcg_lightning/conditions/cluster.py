"""The cluster of an image's representation as a condition: pseudo-labels."""

import torch

from rcg_lightning.conditions.class_label import LABEL_STREAM, check_labels
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.transfers import to_device
from rcg_lightning.errors import UserError
from rcg_lightning.types import Batch, Classes, Condition, DataSpec, Part, Raw


class ClusterCondition(Condition):
    """The cluster of the image's representation; for generation, sampled by the sizes of the clusters."""

    needs = frozenset({"cluster"})

    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        if "cluster" not in spec.columns:
            raise UserError("the cluster condition needs clusters: run `rcg cluster` and add its store to data.stores")
        self.sizes = torch.tensor(spec.columns["cluster"]["sizes"], dtype=torch.float64)
        return (Classes(len(self.sizes)),)

    def observe(self, batch: Batch) -> Raw:
        return (batch["cluster"],)

    def sample(self, batch: Batch) -> Raw:
        if "cluster" in batch:
            return (check_labels(batch["cluster"], len(self.sizes)),)
        seeds = batch["seed"]
        cumulative = to_device((self.sizes.cumsum(0) / self.sizes.sum()).float(), seeds.device)
        u = SeededNoise(seeds, LABEL_STREAM).uniform(0, 1)[:, 0]
        return (torch.searchsorted(cumulative, u).clamp_(max=len(self.sizes) - 1),)

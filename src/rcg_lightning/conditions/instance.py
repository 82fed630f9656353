"""The representation of a near neighbour as a condition (IC-GAN)."""

from pathlib import Path

import torch
import torch.nn.functional as F

from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.data.store import Store
from rcg_lightning.types import Batch, Raw, require

INSTANCE_STREAM = 4  # draws of instances
UNLABELLED = (
    "instances come without the labels of their neighbours: make them by `rcg instances` from labelled images and "
    "their neighbours, or choose --classes"
)


class InstanceCondition(RepresentationCondition):
    """The representation of a image, of which the one that is shown is a near neighbour (IC-GAN, Casanova 2021).

    So p(x) is a mixture over instances, each a neighbourhood. Neighbours are drawn by the data module, from a store
    that `rcg neighbours` made. For generation an instance is drawn uniformly from a store of instances: that of the
    training images, fewer that were chosen from them, or one of other images that the generator never saw, encoded
    by the same encoder; or it is sampled from a representation diffusion model. Joined to a class, the label is that of
    one of the instance's neighbours, as in the official code.

    Args:
        prior: checkpoint of a generator of representations, for sampling without a store.
        unit: networks are told representations of length one, as officially, whatever length the encoder's have; else
            as they are, which weights them more where they are longer. Neighbours are found by angles alone.
    """

    key = "instance"
    lacks = (
        "the instance condition needs representations and neighbours: run `rcg extract` and `rcg neighbours`, add both "
        "stores to data.stores"
    )
    unsampled = "no instances to sample from: give their store with --instances, or an RDM's checkpoint with --prior"

    def __init__(self, prior: Path | None = None, unit: bool = True) -> None:
        super().__init__(prior)
        self.unit = unit
        self._instances: Store | None = None

    def use_instances(self, path: Path) -> None:
        store = Store.open(path)
        require("representation" in store.columns, f"{path} holds no representations: it cannot be sampled from")
        shape = store.columns["representation"]["shape"]
        require(shape == [self.dim], f"the instances at {path} have shape {shape}, the generator reads {[self.dim]}")
        self._check(store.identity.get("representation"), f"{path} holds instances of")
        self._instances = store

    def completed(self, batch: Batch) -> Batch:
        if self.key in batch or self._instances is None:
            return batch
        seeds, store = batch["seed"], self._instances
        noise = SeededNoise(seeds, INSTANCE_STREAM)
        index = noise.integers(0, store.size).cpu().numpy()
        drawn: Batch = {"instance": torch.from_numpy(store.read("representation", index)).float().to(seeds.device)}
        if "labels" in store.columns:
            labels = torch.from_numpy(store.read("labels", index)).long().to(seeds.device)  # (B, k), of its neighbours
            drawn["label"] = labels.gather(1, noise.integers(1, labels.shape[1])[:, None])[:, 0]
        return drawn | batch  # what is given stays

    def observe(self, batch: Batch) -> Raw:
        return self._told(super().observe(batch))

    def sample(self, batch: Batch) -> Raw:
        return self._told(super().sample(self.completed(batch)))

    def _told(self, raw: Raw) -> Raw:
        return tuple(F.normalize(part, dim=1) for part in raw) if self.unit else raw

"""The representation of a near neighbour as a condition (IC-GAN)."""

from pathlib import Path

import torch
import torch.nn.functional as F

from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.data.store import Store
from rcg_lightning.types import Batch, Raw, require

INSTANCE_STREAM = 4  # noise stream of instances
UNLABELLED = (
    "instances lack the labels of their neighbours: create them with `rcg instances` from labelled images and their "
    "neighbours, or give --classes"
)


class InstanceCondition(RepresentationCondition):
    """The representation of an instance: an image among whose near neighbours the training image is (IC-GAN).

    So p(x) is a mixture of neighbourhoods, one for each instance (Casanova et al. 2021). In training the data module
    samples the instance from a store of `rcg neighbours`. For generation, instances are sampled uniformly from a store:
    of all training images, of a selection, or of images that the generator never saw, with the same encoder. Without a
    store they are sampled from a representation diffusion model. Joined with a class, the label is that of one of the
    instance's neighbours, as in the official code.

    Args:
        prior: checkpoint of a generator of representations, for sampling without a store.
        unit: normalise representations to length one, as the official code does; otherwise longer ones weigh more.
            Neighbours are found by angle alone.
    """

    key = "instance"
    missing_store = (
        "the instance condition needs representations and neighbours: run `rcg extract` and `rcg neighbours`, add both "
        "stores to data.stores"
    )
    missing_prior = (
        "no instances to sample from: give their store with --instances, or an RDM's checkpoint with --prior"
    )

    def __init__(self, prior: Path | None = None, unit: bool = True) -> None:
        super().__init__(prior)
        self.unit = unit
        self._instances: Store | None = None

    def use_instances(self, path: Path) -> None:
        store = Store.open(path)
        require("representation" in store.columns, f"{path} holds no representations: give a store of instances")
        shape = store.columns["representation"]["shape"]
        require(shape == [self.dim], f"the instances at {path} have shape {shape}, the generator reads {[self.dim]}")
        self._check_encoder(store.identity.get("representation"), f"{path} holds")
        self._instances = store

    def completed(self, batch: Batch) -> Batch:
        if self.key in batch or self._instances is None:
            return batch
        seeds, store = batch["seed"], self._instances
        noise = SeededNoise(seeds, INSTANCE_STREAM)
        index = noise.integers(0, store.size).cpu().numpy()
        sampled: Batch = {"instance": torch.from_numpy(store.read("representation", index)).float().to(seeds.device)}
        if "labels" in store.columns:
            labels = torch.from_numpy(store.read("labels", index)).long().to(seeds.device)  # (B, k), of k neighbours
            sampled["label"] = labels.gather(1, noise.integers(1, labels.shape[1])[:, None])[:, 0]
        return sampled | batch  # given values take precedence

    def observe(self, batch: Batch) -> Raw:
        return self._normalised(super().observe(batch))

    def sample(self, batch: Batch) -> Raw:
        return self._normalised(super().sample(self.completed(batch)))

    def _normalised(self, raw: Raw) -> Raw:
        return tuple(F.normalize(part, dim=1) for part in raw) if self.unit else raw

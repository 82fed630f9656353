"""Where conditions come from: each is observed on real pictures in training and sampled for generation.

This file stands above the stages because a representation prior *is* a trained generator of representations.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.core.random import SeededNoise
from rcg_lightning.data.store import Store
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.stages.folder import prior_at
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, Classes, Condition, Facts, Part, Raw, Vector, require

LABEL_STREAM = 3  # draws of labels and clusters, apart from those of the generators of the same seed
INSTANCE_STREAM = 4  # draws of instances
UNLABELLED = (
    "instances come without the labels of their neighbours: make them by `rcg instances` from labelled pictures and "
    "their neighbours, or choose --classes"
)


class NoCondition(Condition):
    """Nothing is told to the network."""

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        return ()

    def observe(self, batch: Batch) -> Raw:
        return ()

    def sample(self, batch: Batch) -> Raw:
        return ()


class ClassCondition(Condition):
    """The label of the picture; sampled uniformly, or as ``batch["label"]`` says."""

    needs = frozenset({"label"})

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        if facts.classes is None:
            raise UserError("the class condition needs labels and these data have none: use cluster or representation")
        self.count = facts.classes
        return (Classes(facts.classes),)

    def observe(self, batch: Batch) -> Raw:
        return (batch["label"],)

    def sample(self, batch: Batch) -> Raw:
        if "label" in batch:
            return (check_labels(batch["label"], self.count),)
        return (SeededNoise(batch["seed"], LABEL_STREAM).integers(0, self.count),)


class ClusterCondition(Condition):
    """The cluster that a picture's representation falls into; sampled as often as each cluster occurs."""

    needs = frozenset({"cluster"})

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        if "cluster" not in facts.columns:
            raise UserError("the cluster condition needs clusters: run `rcg cluster` and add its store to data.stores")
        self.sizes = torch.tensor(facts.columns["cluster"]["sizes"], dtype=torch.float64)
        return (Classes(len(self.sizes)),)

    def observe(self, batch: Batch) -> Raw:
        return (batch["cluster"],)

    def sample(self, batch: Batch) -> Raw:
        if "cluster" in batch:
            return (check_labels(batch["cluster"], len(self.sizes)),)
        seeds = batch["seed"]
        edges = (self.sizes.cumsum(0) / self.sizes.sum()).float().to(seeds.device)
        draws = SeededNoise(seeds, LABEL_STREAM).uniform(0, 1)[:, 0]
        return (torch.searchsorted(edges, draws).clamp_(max=len(self.sizes) - 1),)


class RepresentationCondition(Condition):
    """The representation of the picture; sampled from a trained representation diffusion model.

    Args:
        prior: checkpoint of the generator of representations; needed only for sampling.
        encoder: computes representations from pictures in training; None reads them from a store.
    """

    key = "representation"  # of a batch and of the facts about its columns
    lacks = "the representation condition needs representations: run `rcg extract`, add its store to data.stores"
    unsampled = "no representation model to sample from: give its checkpoint with --prior"

    def __init__(self, prior: Path | None = None, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self._prior = Frozen(lambda: Generator.load(prior_at(prior))) if prior else None

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.key if self.encoder is None else "image"})

    @property
    def prior(self) -> nn.Module | None:
        return None if self._prior is None else self._prior.module

    def use_prior(self, path: Path) -> None:
        self._prior = Frozen(lambda: Generator.load(prior_at(path)))

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        self.identity = facts.identities.get(self.key)
        if self.encoder is not None and not facts.encoded_online:
            self.identity, self.dim = self.encoder.identity, self.encoder.dim
            return (Vector(self.dim),)
        require(self.key in facts.columns, self.lacks)
        self.dim = facts.columns[self.key]["shape"][0]
        return (Vector(self.dim),)

    def observe(self, batch: Batch) -> Raw:
        if self.encoder is not None:
            return (self.encoder(batch["image"]),)
        return (batch[self.key],)  # type: ignore[literal-required]

    def sample(self, batch: Batch) -> Raw:
        if self.key in batch:
            return (batch[self.key],)  # type: ignore[literal-required]
        prior = self.prior
        if self._prior is None or prior is None:
            raise UserError(self.unsampled)
        assert isinstance(prior, Generator)
        made = f"the prior makes {prior.codec.makes}s of shape {prior.shape}"
        fits = prior.codec.makes == "representation" and prior.shape == (self.dim,)
        require(fits, f"{made}: give a model of the representations, of {self.dim} numbers, that the generator reads")
        self._check(prior.facts.identities.get("representation") if prior.facts else None, "the prior models")
        return (self._prior(batch["seed"], batch.get("label")),)

    def _check(self, theirs: str | None, who: str) -> None:
        """Raise UserError where representations are not of the encoder that the generator was trained with."""
        agree = None in (self.identity, theirs) or self.identity == theirs
        wrong = f"{who} representations {theirs}, the generator was trained on {self.identity}"
        require(agree, f"{wrong}: give what was made by the encoder of its training")


class InstanceCondition(RepresentationCondition):
    """The representation of a picture, of which the one that is shown is a near neighbour (IC-GAN, Casanova 2021).

    So p(x) is a mixture over instances, each a neighbourhood. Neighbours are drawn by the data module, from a store
    that `rcg neighbours` made. For generation an instance is drawn uniformly from a store of instances: that of the
    training pictures, fewer that were chosen from them, or one of other pictures that the generator never saw, encoded
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


class JointCondition(Condition):
    """Several conditions at once, such as representation and class.

    Args:
        conditions: the parts, in order.
    """

    def __init__(self, conditions: list[Condition]) -> None:
        self.conditions = conditions

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(condition.needs for condition in self.conditions))

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the part that has one."""
        encoders = (getattr(condition, "encoder", None) for condition in self.conditions)
        return next((encoder for encoder in encoders if encoder is not None), None)

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        return tuple(part for condition in self.conditions for part in condition.parts(facts))

    @property
    def prior(self) -> nn.Module | None:
        """The prior of the part that has one."""
        return next((condition.prior for condition in self.conditions if condition.prior is not None), None)

    def use_prior(self, path: Path) -> None:
        for condition in self.conditions:
            condition.use_prior(path)

    def use_instances(self, path: Path) -> None:
        for condition in self.conditions:
            condition.use_instances(path)

    def completed(self, batch: Batch) -> Batch:
        for condition in self.conditions:
            batch = condition.completed(batch)
        agree = "instance" not in batch or "label" in batch or "label" not in self.needs
        require(agree, f"the {UNLABELLED}")
        return batch

    def observe(self, batch: Batch) -> Raw:
        return tuple(raw for condition in self.conditions for raw in condition.observe(batch))

    def sample(self, batch: Batch) -> Raw:
        batch = self.completed(batch)
        return tuple(raw for condition in self.conditions for raw in condition.sample(batch))


def check_labels(labels: Tensor, count: int) -> Tensor:
    """Return ``labels``, or raise UserError where one lies outside [0, count)."""
    low, high = int(labels.min()), int(labels.max())
    require(low >= 0 and high < count, f"class {low if low < 0 else high} is out of range: there are {count}, from 0")
    return labels

"""Where conditions come from: each is observed on real pictures in training and sampled for generation.

This file stands above the stages because a representation prior *is* a trained generator of representations.
"""

from pathlib import Path

import torch
from torch import Tensor

from rcg_lightning.core.random import SeededNoise
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.stages.folder import prior_at
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, Classes, Condition, Facts, Part, Raw, Vector, require

LABEL_STREAM = 3  # draws of labels and clusters, apart from those of the generators of the same seed


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

    def __init__(self, prior: Path | None = None, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self._prior = Frozen(lambda: Generator.load(prior_at(prior))) if prior else None

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"representation" if self.encoder is None else "image"})

    def use_prior(self, path: Path) -> None:
        self._prior = Frozen(lambda: Generator.load(prior_at(path)))

    def parts(self, facts: Facts) -> tuple[Part, ...]:
        self.identity = facts.identities.get("representation")
        if self.encoder is not None and not facts.encoded_online:
            self.identity, self.dim = self.encoder.identity, self.encoder.dim
            return (Vector(self.dim),)
        if "representation" not in facts.columns:
            raise UserError(
                "the representation condition needs representations: run `rcg extract`, add its store to data.stores"
            )
        self.dim = facts.columns["representation"]["shape"][0]
        return (Vector(self.dim),)

    def observe(self, batch: Batch) -> Raw:
        if self.encoder is not None:
            return (self.encoder(batch["image"]),)
        return (batch["representation"],)

    def sample(self, batch: Batch) -> Raw:
        if "representation" in batch:
            return (batch["representation"],)
        if self._prior is None:
            raise UserError("no representation model to sample from: give its checkpoint with --prior")
        prior = self._prior.module
        assert isinstance(prior, Generator)
        made = f"the prior makes {prior.codec.makes}s of shape {prior.shape}"
        fits = prior.codec.makes == "representation" and prior.shape == (self.dim,)
        require(fits, f"{made}: give a model of the representations, of {self.dim} numbers, that the generator reads")
        theirs = prior.facts.identities.get("representation") if prior.facts else None
        agree = None in (self.identity, theirs) or self.identity == theirs
        require(agree, f"the prior models representations {theirs}, the generator was trained on {self.identity}")
        return (self._prior(batch["seed"], batch.get("label")),)


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

    def use_prior(self, path: Path) -> None:
        for condition in self.conditions:
            condition.use_prior(path)

    def observe(self, batch: Batch) -> Raw:
        return tuple(raw for condition in self.conditions for raw in condition.observe(batch))

    def sample(self, batch: Batch) -> Raw:
        return tuple(raw for condition in self.conditions for raw in condition.sample(batch))


def check_labels(labels: Tensor, count: int) -> Tensor:
    """Return ``labels``, or raise UserError where one lies outside [0, count)."""
    low, high = int(labels.min()), int(labels.max())
    require(low >= 0 and high < count, f"class {low if low < 0 else high} is out of range: there are {count}, from 0")
    return labels

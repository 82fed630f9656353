"""A self-supervised representation as a condition, sampled from a representation diffusion model (RCG)."""

from pathlib import Path

from torch import nn

from rcg_lightning.core.precision import without_precision
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import prior_at
from rcg_lightning.types import Batch, Condition, DataSpec, Part, Raw, Vector, require


class RepresentationCondition(Condition):
    """The representation of the image; for generation, sampled from a representation diffusion model (RDM).

    Args:
        prior: checkpoint of the generator of representations; needed only for sampling.
        encoder: computes representations from images in training; None reads them from a store.
    """

    key = "representation"  # in a batch, and among the columns of the data spec
    missing_store = (
        "the representation condition needs representations: run `rcg extract`, add its store to data.stores"
    )
    missing_prior = "no RDM to sample representations from: give its checkpoint with --prior"

    def __init__(self, prior: Path | None = None, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self._prior = Frozen(lambda: Generator.load(prior_at(prior)), None) if prior else None

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.key if self.encoder is None else "image"})

    @property
    def prior(self) -> nn.Module | None:
        return None if self._prior is None else self._prior.module

    def use_prior(self, path: Path) -> None:
        self._prior = Frozen(lambda: Generator.load(prior_at(path)), None)

    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        self.identity = spec.identities.get(self.key)
        if self.encoder is not None and not spec.encoded_online:
            self.identity, self.dim = self.encoder.identity, self.encoder.dim
            return (Vector(self.dim),)
        require(self.key in spec.columns, self.missing_store)
        self.dim = spec.columns[self.key]["shape"][0]
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
            raise UserError(self.missing_prior)
        assert isinstance(prior, Generator)
        fits = prior.codec.makes == "representation" and prior.shape == (self.dim,)
        reads = f"the generator reads representations of {self.dim} dimensions"
        require(fits, f"the prior makes {prior.codec.makes}s of shape {prior.shape}, {reads}: give their RDM")
        self._check_encoder(prior.spec.identities.get("representation") if prior.spec else None, "the prior models")
        return (self._prior(batch["seed"], batch.get("label"), batch.get("position")),)

    def _check_encoder(self, identity: str | None, source: str) -> None:
        """Raise UserError where the representations of ``source`` are from another encoder than those of training."""
        known = self.identity, identity
        agree = None in known or len({without_precision(str(one)) for one in known}) == 1
        wrong = f"{source} representations {identity}, the generator was trained on {self.identity}"
        require(agree, f"{wrong}: give representations of the encoder of its training")

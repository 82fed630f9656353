"""Workloads of stages 3 and 4: training MAGE and DiT from stored tokens or latents, and sampling from them."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from rcg_lightning.bench.baselines import as_baseline, switched
from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.frozen import DIM, FrozenNetworks, RandomKL, RandomTokenizer
from rcg_lightning.bench.training import TrainingStep, training_variants
from rcg_lightning.bench.workload import OfficialCost, Variants, Workload, shipped_stage
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import Ancestral, Sampler
from rcg_lightning.networks.layers import SelfAttention
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, DataSpec

log = logging.getLogger(__name__)

TOKENS, CODES = 256, 1024
LATENT = (8, 32, 32)  # mean and deviation of four channels, as in a store
SPEC = DataSpec(
    (3, 256, 256),
    columns={
        "representation": {"shape": [DIM]},
        "tokens": {"shape": [TOKENS], "count": CODES},
        "latent": {"shape": list(LATENT), "moments": True},
    },
)


def stored(batch: int) -> Batch:
    """Return random columns of a store for ``batch`` images."""
    return {
        "index": torch.arange(batch),
        "representation": torch.randn(batch, DIM),
        "tokens": torch.randint(CODES, (batch, TOKENS)),
        "latent": torch.rand(batch, *LATENT),
    }


class MAGETraining(Workload):
    """A training step of MAGE-B conditioned on representations."""

    def __init__(self, batch: int, dropout: float = 0.1, attention_dropout: float | None = None) -> None:
        self.batch, self.dropout, self.attention_dropout = batch, dropout, attention_dropout
        self.memory_goal = 1.5 if dropout and attention_dropout == 0 else None
        without = "" if attention_dropout is None else ", without attention dropout"
        self.name = f"MAGE-B training step, batch {batch}" + (without if dropout else ", without dropout")

    @property
    def official(self) -> dict[str, OfficialCost]:
        frozen = "tokenises and encodes the images"
        if not self.dropout:
            return {}
        if self.attention_dropout is None:
            return {"equal mathematics, with the frozen networks": OfficialCost(10.45 / 2, 1.9, frozen)}
        return {"with the frozen networks and attention dropout": OfficialCost(10.45 / 2, 2.1, frozen)}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        dropout = {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        network = {"class_path": "MAGE", "init_args": {"size": "B", **dropout}}
        stage = shipped_stage("imagenet256/mage_b_rep", SPEC, transformer=network)
        step = TrainingStep(stage, stored(self.batch), device, execution)
        if not self.dropout:
            return Variants(step, self.batch, step.baseline, settings=step.settings)
        frozen = FrozenNetworks(self.batch, device, RandomTokenizer())
        variants = training_variants(step, self.batch, frozen, frozen.networks)
        assert variants.recomputing is not None
        return replace(variants, recomputing=with_attention_dropout(stage, self.dropout, variants.recomputing))


def with_attention_dropout(stage: Stage, dropout: float, work: Callable[[], object]) -> Callable[[], None]:
    """Return ``work`` with dropout of the attention weights, as in the official code."""
    layers = [module for module in stage.modules() if isinstance(module, SelfAttention)]

    def dropping() -> None:
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(switched(layer, "weights_dropout", dropout))
            work()

    return dropping


class TokenDecoding(Workload):
    """MaskGIT's decoder: the part of MAGE's sampling that runs once per image."""

    name = "VQGAN, tokens to images"

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        execution = execution or Execution.usual(device)
        tokenizer = MaskGITVQGAN().to(device).eval()
        tokens = torch.randint(CODES, (self.batch, 16, 16), device=device)

        @torch.no_grad()
        def work() -> None:
            with execution.forward(device):
                tokenizer.decode(tokenizer.lookup(tokens))

        return Variants(work, self.batch)


class Sampling(Workload):
    """Base of sampling z: some of the steps are timed; every step costs the same."""

    config: str
    steps: int
    timed: int
    guidance: Guidance

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def sampler(self) -> Sampler:
        """Return a sampler with ``timed`` steps."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the stage that differ from the config."""
        return {}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        stage = shipped_stage(self.config, SPEC, tile=self.batch, **self.settings())
        assert isinstance(stage, Generator)
        stage.to(device).eval()
        execution = execution or Execution.usual(device)
        settings = execution.sampling(stage, device)
        seeds = torch.arange(self.batch, device=device)
        representations = (torch.randn(self.batch, DIM, device=device),)

        @torch.no_grad()
        def work() -> None:
            with execution.forward(device):
                stage.sample_z(seeds, representations, self.guidance, self.sampler())

        items = self.batch * self.timed / self.steps
        return Variants(work, items, as_baseline(work, stage), settings=settings)


class MAGESampling(Sampling):
    """Parallel decoding by MAGE-B, with or without guidance, without the tokenizer."""

    config, steps, timed = "imagenet256/mage_b_rep", 20, 3

    def __init__(self, batch: int, guided: bool) -> None:
        super().__init__(batch)
        self.guidance = Guidance(2.0, ramp=True) if guided else Guidance()
        self.name = f"MAGE-B sampling, {self.steps} steps{', guided' if guided else ''}, batch {batch}"

    @property
    def official(self) -> dict[str, OfficialCost]:
        seconds = 2.06 if self.guidance.scale != 1 else 1.10
        return {"same work": OfficialCost(self.steps * seconds, 1.1)}

    def sampler(self) -> Sampler:
        return ParallelDecoding(self.timed)


class DiTTraining(Workload):
    """A training step of a DiT conditioned on representations, from stored latents."""

    def __init__(self, batch: int, size: str) -> None:
        self.batch, self.size = batch, size
        self.heavy = size == "XL/2"
        self.name = f"DiT-{size} training step, batch {batch}"

    @property
    def official(self) -> dict[str, OfficialCost]:
        if self.size != "B/2":
            return {}
        also = "makes latents and representations of the images"
        return {"with the frozen networks": OfficialCost(6.5, 3.0, also)}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        stage = shipped_stage("imagenet256/dit_rep", SPEC, denoiser=dit(self.size))
        step = TrainingStep(stage, stored(self.batch), device, execution)
        if not RandomKL.available():
            log.warning("%s: without diffusers there is no KL autoencoder to compute latents in every step", self.name)
            return training_variants(step, self.batch, None, list)
        frozen = FrozenNetworks(self.batch, device, RandomKL())
        return training_variants(step, self.batch, frozen, frozen.networks)


class DiTSampling(Sampling):
    """Ancestral sampling by a DiT, without the autoencoder."""

    config, steps, timed = "imagenet256/dit_rep", 250, 5
    guidance = Guidance()

    def __init__(self, batch: int, size: str) -> None:
        super().__init__(batch)
        self.size, self.heavy = size, size == "XL/2"
        self.name = f"DiT-{size} sampling, {self.steps} steps, batch {batch}"

    def settings(self) -> dict[str, Any]:
        return {"denoiser": dit(self.size)}

    def sampler(self) -> Sampler:
        return Ancestral(self.timed)


def dit(size: str) -> dict[str, Any]:
    """Return the denoiser of imagenet256/dit_rep, as in a config, with a network of another size."""
    network = {"class_path": "DiT", "init_args": {"size": size}}
    return {"network": network, "schedule": "LinearSchedule", "prediction": "Noise", "learned_variance": True}

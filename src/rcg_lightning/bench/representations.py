"""Workloads of stages 1 and 2: extracting representations, training their diffusion model and sampling from it."""

from collections.abc import Callable

import torch

from rcg_lightning.bench.workload import Baseline, Workload, in_training_precision, shipped_stage, training_step
from rcg_lightning.core.random import tile_rows
from rcg_lightning.core.samplers import DDIM, OffsetGrid
from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.encoders import Encoder, Loaded
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Facts

DIM = 256
STORED = {"representation": {"shape": [DIM]}}


class RandomViT(Encoder):
    """MoCo v3's ViT-B with its head, as the official file has it, with random weights."""

    def load(self) -> Loaded:
        network = Projected(VisionTransformer(), ProjectionHead(768, 4096, DIM))
        return Loaded(network, Preprocess(size=224), DIM, {}, {})


class Extraction(Workload):
    """Representations of pictures that are in memory already."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"extract representations, ViT-B, batch {batch}"

    @property
    def baselines(self) -> dict[str, Baseline]:
        return {"same work": Baseline(0.488, 1.12)}

    def prepare(self, device: torch.device) -> tuple[Callable[[], object], float]:
        encoder = RandomViT()
        encoder.setup()
        pictures = torch.rand(self.batch, 3, 256, 256, device=device)

        @torch.no_grad()
        def work() -> None:
            encoder(pictures)

        return work, self.batch


class RDMTraining(Workload):
    """A training step of the official RDM, from a store."""

    unit = "representation"

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"RDM training step, batch {batch}"

    @property
    def baselines(self) -> dict[str, Baseline]:
        if self.batch == 16:
            return {"with the encoder in every step": Baseline(7.45 / 16, 25, "encodes the pictures")}
        if self.batch == 128:
            encoding = Baseline(0.495, 65, "encodes the pictures")
            return {"with the encoder in every step": encoding, "same work": Baseline(0.95 / 128, 1.2)}
        return {}

    def prepare(self, device: torch.device) -> tuple[Callable[[], object], float]:
        stage = shipped_stage("imagenet256_rdm", Facts((3, 256, 256), columns=STORED))
        batch = {"representation": torch.randn(self.batch, DIM), "index": torch.arange(self.batch)}
        return training_step(stage, batch, device), self.batch  # type: ignore[arg-type]


class RDMSampling(Workload):
    """Sampling representations: a part of the 250 steps is timed, all alike."""

    unit = "representation"
    STEPS, TIMED = 250, 25

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"RDM sampling, {self.STEPS} steps, batch {batch}"

    @property
    def baselines(self) -> dict[str, Baseline]:
        return {"same work, the official batch of 16": Baseline(1 / 0.98, 2.4 if self.batch > 64 else 1.1)}

    def prepare(self, device: torch.device) -> tuple[Callable[[], object], float]:
        stage = shipped_stage("imagenet256_rdm", Facts((3, 256, 256), columns=STORED), tile=self.batch)
        assert isinstance(stage, Generator)
        stage.to(device).eval()
        seeds = torch.arange(self.batch, device=device)
        assert len(tile_rows(seeds, self.batch)) == 1
        sampler = DDIM(self.TIMED, eta=1.0, grid=OffsetGrid())

        @torch.no_grad()
        def work() -> None:
            with in_training_precision(device):
                stage.sample({"seed": seeds}, sampler=sampler)

        return work, self.batch * self.TIMED / self.STEPS

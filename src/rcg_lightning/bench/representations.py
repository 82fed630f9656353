"""Workloads of stages 1 and 2: extracting representations, training their diffusion model and sampling from it."""

import torch

from rcg_lightning.bench.baselines import as_baseline
from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.frozen import DIM, FrozenNetworks, RandomViT
from rcg_lightning.bench.training import TrainingStep, training_variants
from rcg_lightning.bench.workload import OfficialCost, Variants, Workload, shipped_stage
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import DataSpec

STORED = {"representation": {"shape": [DIM]}}


class Extraction(Workload):
    """Extraction of representations from images in memory."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"extract representations, ViT-B, batch {batch}"

    @property
    def official(self) -> dict[str, OfficialCost]:
        return {"same work": OfficialCost(0.488, 1.12)}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        execution = execution or Execution.usual(device)
        encoder = RandomViT(precision=execution.frozen_precision)
        encoder.setup()
        execution.network(encoder.backbone)
        images = torch.rand(self.batch, 3, 256, 256, device=device)

        @torch.no_grad()
        def work() -> None:
            encoder(images)

        return Variants(work, self.batch, as_baseline(work, encoder.backbone))


class RDMTraining(Workload):
    """A training step of the official RDM, from a store."""

    unit = "representation"

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"RDM training step, batch {batch}"

    @property
    def official(self) -> dict[str, OfficialCost]:
        if self.batch == 16:
            return {"with the encoder in every step": OfficialCost(7.45 / 16, 25, "encodes the images")}
        if self.batch == 128:
            encoding = OfficialCost(0.495, 65, "encodes the images")
            return {"with the encoder in every step": encoding, "same work": OfficialCost(0.95 / 128, 1.2)}
        return {}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        stage = shipped_stage("imagenet256/rdm", DataSpec((3, 256, 256), columns=STORED))
        batch = {"representation": torch.randn(self.batch, DIM), "index": torch.arange(self.batch)}
        frozen = FrozenNetworks(self.batch, device)
        step = TrainingStep(stage, batch, device, execution)  # type: ignore[arg-type]
        return training_variants(step, self.batch, frozen, frozen.networks)


class RDMSampling(Workload):
    """Sampling representations: some of the 250 equal steps are timed. The baseline uses the official batch size."""

    unit = "representation"
    STEPS, TIMED, OFFICIAL_BATCH = 250, 10, 16

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.name = f"RDM sampling, {self.STEPS} steps, batch {batch}"

    @property
    def official(self) -> dict[str, OfficialCost]:
        return {"same work, the official batch of 16": OfficialCost(1 / 0.98, 2.4 if self.batch > 64 else 1.1)}

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        stage = shipped_stage("imagenet256/rdm", DataSpec((3, 256, 256), columns=STORED))
        assert isinstance(stage, Generator)
        stage.to(device).eval()
        execution = execution or Execution.usual(device)
        settings = execution.sampling(stage, device)
        sampler = DDIM(self.TIMED, eta=1.0, spacing=OffsetSpacing())

        @torch.no_grad()
        def sample(batch: int) -> None:
            stage.tile = batch
            with execution.forward(device):
                stage.sample({"seed": torch.arange(batch)}, sampler=sampler)

        share = self.TIMED / self.STEPS
        return Variants(
            lambda: sample(self.batch),
            self.batch * share,
            as_baseline(lambda: sample(self.OFFICIAL_BATCH), stage),
            self.OFFICIAL_BATCH * share,
            settings=settings,
        )

"""Kernels launched in a step, compared with kernels.json: a change that doubles launches is seen.

On GPUs small networks wait for launches, about 5 µs each. ``make kernels`` writes the table again.
Fused optimizers count once; casts of autocast count as they come.
"""

import json
from pathlib import Path

import pytest
import torch

from helpers.device_stages import STAGES
from helpers.pretended.backend import GPU
from helpers.pretended.device import recorded
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.types import DataSpec

TABLE = Path(__file__).with_name("kernels.json")
PRECISIONS = ["32-true", "bf16-mixed"]
TRAINED = ["rdm", "dit", "unet", "masked", "moco", "gan"]
SAMPLED = {"rdm": DDIM, "dit": DDIM, "masked": ParallelDecoding}
SPEC = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}, "cluster": {"shape": [], "sizes": [9, 9]}})


def training_step(name, precision, fitted):
    """Kernels of a training step."""
    return fitted(name, precision).steps[-1].kernels.total()


def sampling_step(name, precision, frozen_networks):
    """Kernels of one more step of sampling a tile."""
    stage = STAGES[name](frozen_networks).build(SPEC).to(GPU).eval()
    seeds, raw, counts = torch.arange(8).to(GPU), (torch.zeros(8, dtype=torch.int64, device=GPU),), []
    for steps in (4, 5):
        half = torch.autocast(GPU.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.no_grad(), half, recorded() as record:
            stage.sample_z(seeds, raw, Guidance(1.5), SAMPLED[name](steps))
        counts.append(record.kernels.total())
    return counts[1] - counts[0]


def test_no_step_launches_more_kernels_than_before(fitted, frozen_networks, request):
    counted = {
        "training": {name: {p: training_step(name, p, fitted) for p in PRECISIONS} for name in TRAINED},
        "sampling": {name: {p: sampling_step(name, p, frozen_networks) for p in PRECISIONS} for name in SAMPLED},
    }
    version = torch.__version__.partition("+")[0]
    if request.config.getoption("--write-kernels"):
        TABLE.write_text(json.dumps({"torch": version, **counted}, indent=2) + "\n")
    table = json.loads(TABLE.read_text())
    if table.pop("torch") != version:
        pytest.skip(f"{TABLE.name} is of another torch than {version}")
    assert counted == table, "if it is intended, write the table again with `make kernels`"

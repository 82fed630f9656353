"""Tables and rules of the official code: betas, time grids, learning rates, position tables and EMA weights."""

import re

import pytest
import torch

from rcg_lightning.core.samplers import LeadingSpacing, LinspaceSpacing, OffsetSpacing
from rcg_lightning.core.schedule import LinearSchedule, ScaledLinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.layers import sincos_table
from rcg_lightning.stages.optimization import ConstantLR, CosineLR

BETAS = {"rdm_ldm_scaled_linear": ScaledLinearSchedule, "dit_adm_linear": LinearSchedule}
RATES = {
    "cosine": CosineLR,  # down to min_lr
    "const": lambda warmup, final: ConstantLR(warmup),
}


def recorded(golden, pattern):
    """(match, tensor) of every tensor whose name fits; at least one does."""
    found = [(re.fullmatch(pattern, name), tensor) for name, tensor in golden.io.items()]
    found = [(match, tensor) for match, tensor in found if match]
    assert found, pattern
    return found


@pytest.mark.golden("schedules")
def test_betas(golden):
    for match, expected in recorded(golden, rf"beta\.({'|'.join(BETAS)})"):
        schedule = BETAS[match[1]](len(expected))
        torch.testing.assert_close(schedule.betas(), expected, **golden.config["tolerance"])
        bars = (1 - expected).cumprod(0)
        torch.testing.assert_close(schedule.alphas_bar[1:], bars, **golden.config["tolerance"])


@pytest.mark.golden("schedules")
def test_rdm_time_spacings(golden):
    count = len(golden.io["beta.rdm_ldm_scaled_linear"])
    for match, expected in recorded(golden, r"rdm_ddim_timesteps\.(\d+)"):
        steps = int(match[1])
        if int(expected[-1]) >= count:  # the official code fails there as well, when it reads its tables
            with pytest.raises(UserError, match="run out of the schedule"):
                OffsetSpacing().timesteps(steps, count)
            continue
        assert OffsetSpacing().timesteps(steps, count) == [*expected.tolist()[::-1], 0]


@pytest.mark.golden("schedules")
def test_respaced_time_spacings(golden):
    count = len(golden.io["beta.dit_adm_linear"])
    for match, expected in recorded(golden, r"respacing\.(ddim)?(\d+)"):
        grid = LeadingSpacing() if match[1] else LinspaceSpacing()
        assert grid.timesteps(int(match[2]), count) == [*expected.tolist()[::-1], -1]


@pytest.mark.golden("schedules")
def test_learning_rates(golden):
    """Equal after the warm-up. Within it ours is one step ahead: officially the first step has rate 0."""
    given, epochs = golden.config["lr"], golden.io["lr.epochs"]
    wholes = (n for n in range(1, 1000) if torch.allclose(epochs * n, (epochs * n).round(), rtol=0, atol=1e-6))
    per_epoch = next(wholes)  # steps an epoch, so that every recorded epoch is a whole step
    steps, final = (epochs * per_epoch).round(), given["min_lr"] / given["lr"]
    warmup, total = given["warmup_epochs"] * per_epoch, given["epochs"] * per_epoch
    for match, expected in recorded(golden, rf"lr\.({'|'.join(RATES)})(?:_with_lr_scale_([\d.]+))?"):
        base, schedule = given["lr"] * float(match[2] or 1), RATES[match[1]](warmup, final)
        for step, rate in zip(steps.long().tolist(), expected.tolist(), strict=True):
            ours = base * schedule.factor(step - 1 if step < warmup else step, total) if step else 0.0
            assert ours == pytest.approx(rate, rel=1e-9, abs=1e-12), (match[0], step)


@pytest.mark.golden("schedules")
def test_position_tables(golden):
    for match, expected in recorded(golden, r"pos\.(dit|mage_with_cls)"):
        expected = expected[1:] if "cls" in match[1] else expected
        side = round(len(expected) ** 0.5)
        # MAGE's frequencies are float32, ours and DiT's float64
        close = {"rtol": 1e-6, "atol": 1e-7} if match[1] == "dit" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(sincos_table(side, side, expected.shape[1]), expected, **close)


class Weight(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())


@pytest.mark.golden("schedules")
def test_ema(golden):
    before, source = golden.io["ema_dit_adm.target_before"], golden.io["ema_dit_adm.source"]
    for match, expected in recorded(golden, r"ema_dit_adm\.target_after_rate([\d.]+)"):
        ema = EMA(float(match[1]))
        ema.build({"network": Weight(before)})
        ema.update({"network": Weight(source)})
        torch.testing.assert_close(ema.averaged()["network"].weight.data, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.golden("ema_litema")
def test_ema_with_warmup(golden):
    """The update rule with the recorded parameters; ``EMA`` describes when it is applied."""
    io = golden.io
    network = torch.nn.Linear(io["shadow0.weight"].shape[1], io["shadow0.weight"].shape[0])

    def load(kind, n):
        network.load_state_dict({name: io[f"{kind}{n}.{name}"] for name in ("weight", "bias")})

    load("shadow", 0)
    ema = EMA(golden.config["decay"], warmup=True)
    ema.build({"network": network})
    count = sum(name.startswith("num_updates") for name in io)
    assert count
    for n in range(1, count + 1):
        load("param", n)
        ema.updates = int(io[f"num_updates{n}"]) - 1  # the count is set by hand before the last update
        ema.update({"network": network})
        assert ema.updates == int(io[f"num_updates{n}"])
        for name in ("weight", "bias"):
            averaged = ema.averaged()["network"].get_parameter(name)
            torch.testing.assert_close(averaged.data, io[f"shadow{n}.{name}"], **golden.config["tolerance"])

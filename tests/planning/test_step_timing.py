"""What a stage costs, from a few steps of it."""

import pytest
import torch

from rcg_lightning.planning import step_timing
from rcg_lightning.planning.machine import Machine, Moment, this_machine
from rcg_lightning.planning.run_plan import Wishes, compilable_seconds
from rcg_lightning.planning.stage_choice import generator_stage, rdm_stage
from rcg_lightning.planning.step_timing import measure_stage, seconds_per_image
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), None, {"representation": {"shape": [6]}}, {"representation": "an encoder's"})


def mlp():
    return generator_stage("mlp", (1, 8, 8), "representation", on_cpu=True, few=False)


def test_a_stage_is_trained_and_sampled_for_its_costs():
    machine = this_machine("cpu")
    cost = measure_stage(mlp(), SPEC, 32, machine)
    assert cost.batch == 32
    assert cost.evaluation > 0
    assert cost.compile is None
    assert measure_stage(rdm_stage(6, "none", on_cpu=True), SPEC, 32, machine).evaluation > 0


@pytest.mark.parametrize(
    ("first", "others", "expected"), [(30.0, 0.5, (0.5, True)), (90.0, 0.5, (1.0, False)), (30.0, 1.0, (1.0, False))]
)
def test_networks_are_compiled_where_that_saves_time(first, others, expected, monkeypatch):
    def timed(stage, spec, batch, machine, compile=False):
        return [first, others, others] if compile else [2.0, 1.0, 1.0]

    monkeypatch.setattr(step_timing, "_timed_steps", timed)
    cost = measure_stage(mlp(), SPEC, 32, this_machine("cpu"), compilable=300.0)
    assert (cost.seconds, cost.compile) == expected
    assert cost.compiling == (first if cost.compile else 0)


def test_a_compiled_stage_is_timed():
    assert measure_stage(mlp(), SPEC, 32, this_machine("cpu"), compilable=1e9).compile in (True, False)


@pytest.mark.parametrize(
    ("device", "budget", "expected"), [("cuda", 3600, 2520), ("cuda", 600, 0), ("cpu", 3600, 0), ("cuda", None, 0)]
)
def test_compiling_is_tried_on_a_gpu_where_the_budget_is_long(device, budget, expected):
    machine = Machine(device, "a name", 2, 10**9)
    assert compilable_seconds(Wishes("images"), machine, budget) == pytest.approx(expected)
    assert compilable_seconds(Wishes("images", compare=True), machine, budget) == pytest.approx(expected / 3)


def test_an_encoder_is_timed_after_a_batch_as_large_as_the_timed_one(monkeypatch):
    class OnGPU(Machine):
        """A GPU whose values lie in the CPU's memory."""

        @property
        def on_cpu(self):
            return False

        def now(self):
            return Moment(float(len(sizes)), 0.0)

    sizes = []

    def encoder(images):
        sizes.append(len(images))
        return torch.zeros(len(images), 6)

    assert seconds_per_image(encoder, SPEC, OnGPU("cpu", "a name", 1, 10**9)) == 1 / 128
    assert sizes == [128, 128]

"""Every stage trains on the pretended device: no mixed devices, no waits in a step, and resumption to the last bit."""

from collections import Counter

import pytest
import torch

from helpers.device_stages import STAGES

PRECISIONS = ["32-true", "bf16-mixed"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STAGES)
def test_a_step_never_waits_and_a_run_resumes_exactly(name, precision, fitted):
    run = fitted(name, precision)
    waits = sum((step.waits for step in run.steps), Counter())
    assert not waits, f"the host waits inside a training step: {dict(waits)}"
    assert len(run.steps) == 3
    assert all(step.kernels.total() > 10 for step in run.steps)
    assert all(value.isfinite().all() for value in run.state.values())
    if precision == "32-true":
        return  # one precision is enough
    resumed = fitted(name, precision, resume=run.half)
    assert resumed.state.keys() == run.state.keys()
    differing = [key for key, value in run.state.items() if not torch.equal(value, resumed.state[key])]
    assert not differing

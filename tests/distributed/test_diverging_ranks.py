"""Two processes of which only one sees values that are not finite: both skip the same steps, and both stop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.one_rank_diverges import STAGES

SCRIPT = Path(__file__).parents[1] / "helpers" / "one_rank_diverges.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank")
    search = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": search}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def results(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def weights(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", STAGES)
def test_both_processes_skip_the_same_steps(name, out):
    assert results(out / name) == [{"message": "", "skipped": 2, "step": 8}] * 2
    first, second = weights(out / name)
    assert all(torch.equal(first[key], second[key]) and first[key].isfinite().all() for key in first)


@pytest.mark.parametrize("name", STAGES)
def test_both_processes_stop_at_the_same_step(name, out):
    first, second = results(out / f"{name}_diverged")
    for result in (first, second):
        assert "training has diverged at step 3 (loss " in result["message"]
        assert "last.ckpt (step 2)" in result["message"]
        assert (result["skipped"], result["step"]) == (3, 5)

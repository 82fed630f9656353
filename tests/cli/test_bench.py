"""`rcg bench`: its output, its comparison with earlier runs, and what it rejects."""

import json

import pytest

from helpers.matmuls import Matmuls
from rcg_lightning.bench.timing import Timing
from rcg_lightning.cli import bench as command
from rcg_lightning.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Let the command time one small workload, in this process."""
    monkeypatch.setattr(command, "workloads", lambda images, gpu: [Matmuls()])
    monkeypatch.setattr(Timing, "in_new_process", Timing.in_this_process)


def test_the_command_writes_and_compares(small, tmp_path, capsys):
    out = tmp_path / "bench.json"
    command.bench(out=out, times=1, profile=tmp_path / "traces")
    found = json.loads(out.read_text())
    assert found["workloads"]["matmuls, small"]["flops"] == 2048
    assert json.loads((tmp_path / "traces" / "matmuls_small.json").read_text())["traceEvents"]
    command.bench(compare=out, times=1)
    assert "than before" in capsys.readouterr().out


def test_the_baseline_is_measured_as_well(small, tmp_path):
    out, tables = tmp_path / "bench.json", tmp_path / "bench.md"
    command.bench(out=out, times=1, baseline=True, markdown=tables)
    found = json.loads(out.read_text())["workloads"]["matmuls, small"]
    assert found["variants"]["baseline"]["flops"] == 2 * found["flops"]
    assert found["variants"]["recomputing"]["flops"] == 4 * found["flops"]
    assert found["times_as_fast"]["baseline"]["goals"] == [2.0]
    assert "than the baseline" in tables.read_text()


def test_each_workload_has_its_own_process(tmp_path):
    command.bench(only=["decode JPEG files, Pillow, scaled"], times=1, out=tmp_path / "bench.json")
    (found,) = json.loads((tmp_path / "bench.json").read_text())["workloads"].values()
    assert found["items_per_second"] > 0
    with pytest.raises(UserError, match="holds no JPEG files"):
        command.bench(only=["decode JPEG files, Pillow, scaled"], images=tmp_path)


def test_mistakes_are_rejected(small, tmp_path):
    with pytest.raises(UserError, match="did you mean matmuls"):
        command.bench(only=["matmul5"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="not a file that"):
        command.bench(compare=tmp_path / "other.json")

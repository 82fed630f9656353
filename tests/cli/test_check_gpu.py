"""`rcg check-gpu`: wrong input ends at once with one line; a part runs in a process of its own."""

import json

import pytest
import torch

from rcg_lightning.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "throughputs"], "did you mean throughput"),
        (["--only", "cifar10"], "give --images"),
        (["--images", "tests"], "neither cifar-10-batches-py nor train and test"),
    ],
)
def test_wrong_input_is_one_line(words, message, capsys, tmp_path):
    assert main(["check-gpu", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_gpu_is_told_so(capsys, tmp_path):
    assert main(["check-gpu", "--out", str(tmp_path)]) == 2
    assert "no cuda that torch can use" in capsys.readouterr().err


def test_a_rehearsed_part_writes_lines_table_and_log(capsys, tmp_path):
    assert main(["check-gpu", "--rehearse", "--only", "environment", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"environment"}
    assert {row["verdict"] for row in rows} == {"passed", "measured"}
    assert "| environment | bf16 matmul | right | exact | passed |" in (tmp_path / "checks.md").read_text()
    assert (tmp_path / "checks.log").exists()
    assert "environment (at most" in capsys.readouterr().out

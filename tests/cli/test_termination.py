"""SIGTERM ends commands that sample or extract after a batch: whole shards stay, and the same command continues."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from helpers import rcg_process
from rcg_lightning.cli.main import main


@pytest.fixture
def checkpoint(trainer, make_stage, digits, tmp_path):
    trainer(tmp_path / "run", 1).fit(make_stage(), digits())
    return tmp_path / "run" / "last.ckpt"


def terminated(argv, folder, begun, wait=0.0):
    """Start a command, send SIGTERM ``wait`` seconds after ``begun()``, and return its exit code and last line."""
    process = rcg_process.start(argv, folder)
    until = time.monotonic() + 90
    while not begun():
        assert process.is_alive(), (folder / "output.txt").read_text()
        assert time.monotonic() < until
        time.sleep(0.002)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGTERM)
    code = rcg_process.finish(process)
    return code, (folder / "output.txt").read_text().strip().splitlines()[-1]


def arrays(store):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("*.npy")}


def test_sampling(rcg, checkpoint, tmp_path):
    words = ["sample", "--checkpoint", checkpoint, "--number", 2048, "--batch_size", 4, "--png", "false"]
    words += ["--grid", "false", "--accelerator", "cpu", "--out", tmp_path / "samples"]
    store = tmp_path / "samples" / "store"
    code, line = terminated(words, tmp_path, (store / "000000.json").exists)
    assert code == 143
    assert line.startswith("rcg sample: terminated; ")
    assert f" of 8 shards of {store} are written; continue with: rcg sample" in line
    assert 0 < len(arrays(store)) < 8
    assert not list(store.glob(".*draft"))
    assert rcg(*words)[0] == 0
    assert rcg(*words[:-1], tmp_path / "whole")[0] == 0
    assert arrays(store) == arrays(tmp_path / "whole" / "store")


def test_sampling_in_two_processes(checkpoint, tmp_path):
    """Lightning starts the second process, which runs the same command line."""
    words = ["sample", "--checkpoint", checkpoint, "--number", 4096, "--batch_size", 4, "--png", "false"]
    words += ["--accelerator", "cpu", "--devices", 2, "--out", tmp_path / "samples"]
    command = [sys.executable, "-m", "rcg_lightning.cli", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 300  # two processes import torch, on a machine that may be busy
        while not (tmp_path / "samples" / "store" / "000000.json").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert error.count("rcg sample: terminated; ") == 1  # in the main process
    assert f" of 16 shards of {tmp_path / 'samples' / 'store'} are written" in error


def test_scoring_stores_no_samples(checkpoint, tmp_path):
    """Terminated while the callback's loop runs, as the setting's metrics are not complete yet."""
    encoder = {"class_path": "TrainedEncoder", "init_args": {"folder": str(tmp_path / "pca")}}
    extractor = tmp_path / "extractor.yaml"
    extractor.write_text(yaml.safe_dump({"class_path": "EncoderExtractor", "init_args": {"encoder": encoder}}))
    data = ["--data.source", "Digits"]
    assert main(["principal", *data, "--dim", "4", "--out", str(tmp_path / "pca")]) == 0
    words = ["evaluate", "--samples", checkpoint, "--number", 500000, "--batch_size", 16, "--accelerator", "cpu", *data]
    words += ["--extractor", extractor, "--out", tmp_path / "metrics.json", "--reference", tmp_path / "reference"]
    code, line = terminated(words, tmp_path, lambda: list(tmp_path.glob("reference/*.safetensors")), wait=2)
    assert code == 143
    assert line.startswith("rcg evaluate: terminated; ")
    assert "continue with: rcg evaluate" in line
    assert not (tmp_path / "metrics.json").exists()

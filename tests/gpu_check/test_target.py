"""What only a GPU has, asked with torch's own names; on the CPU the same calls do nothing."""

from types import SimpleNamespace

import pytest
import torch

from rcg_lightning.gpu_check.target import Target

CPU, GPU = Target(torch.device("cpu"), rehearsal=True), Target(torch.device("cuda"))


def test_a_card_is_described(monkeypatch):
    found = SimpleNamespace(total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert GPU.card == "NVIDIA H100, 80.0 GiB, compute capability 9.0"
    assert CPU.card == CPU.name == CPU.driver


def test_the_driver_is_that_of_the_first_visible_card(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100, 580.1, $1"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert GPU.driver == "NVIDIA H100, 580.1, --id=3"
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GPU.driver == "a GPU (FileNotFoundError of nvidia-smi)"


def test_waits_are_errors_inside_the_context_only(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.raises(ValueError, match="in between"), GPU.no_waits():
        raise ValueError("in between")
    assert modes == ["error", "default"]
    with CPU.no_waits():
        pass
    assert len(modes) == 2


def test_a_device_is_unusable_where_waiting_for_it_fails(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert CPU.usable()
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert not GPU.usable()


def test_settings_of_the_trainer():
    assert GPU.trainer_settings("bf16")["precision"] == "bf16-mixed"
    assert GPU.trainer_settings("bf16")["float32_precision"] == "high"
    assert GPU.trainer_settings("tf32")["precision"] == "32-true"
    assert CPU.trainer_settings("float32")["float32_precision"] == "highest"
    assert CPU.trainer_settings("float32")["accelerator"] == "cpu"

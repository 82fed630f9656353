"""The trainer's own settings: ranges, and one decision about precision from the accelerator that training uses."""

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from rcg_lightning.cli.familiar_options import familiar_option
from rcg_lightning.core.precision import set_float32_precision
from rcg_lightning.errors import UserError
from rcg_lightning.trainer import Trainer, default_precision, on_cuda, reset_torch


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 0},
        {"max_steps": -5},
        {"devices": 0},
        {"devices": -2},
        {"checkpoint_every": 0},
        {"val_check_interval": 0},
        {"log_every_n_steps": 0},
        {"limit_train_batches": 0},
        {"limit_train_batches": 0.0},
        {"limit_train_batches": 1.5},
        {"limit_predict_batches": 0},
        {"limit_val_batches": -1},
        {"accumulate_grad_batches": 0},
        {"num_nodes": 0},
        {"overfit_batches": -1},
        {"fast_dev_run": -1},
    ],
    ids=str,
)
def test_settings_with_which_nothing_would_be_trained_are_rejected(settings, tmp_path):
    (name,) = settings
    with pytest.raises(UserError, match=f"^Trainer: {name} should be "):
        Trainer(tmp_path, accelerator="cpu", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 0.5},
        {"limit_train_batches": 3},
        {"limit_val_batches": 4.0},
        {"limit_val_batches": 0},
        {"devices": "auto"},
    ],
    ids=str,
)
def test_settings_in_range_are_accepted(settings, tmp_path):
    Trainer(tmp_path, accelerator="cpu", logger=False, **settings)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU that has bf16, as far as torch is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.fixture(autouse=True)
def settings_of_torch():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [("auto", "bf16-mixed"), ("gpu", "bf16-mixed"), ("cuda", "bf16-mixed"), ("cpu", "32-true"), ("mps", "32-true")],
)
def test_the_accelerator_decides_about_precision_not_the_machine(gpu, accelerator, precision):
    assert default_precision(accelerator) == precision


def test_an_accelerator_object_decides_too(gpu):
    assert default_precision(CPUAccelerator()) == "32-true"
    assert default_precision(CUDAAccelerator()) == "bf16-mixed"


def test_without_a_gpu_everything_is_float32():
    if not torch.cuda.is_available():
        assert not on_cuda("auto")
        assert default_precision("gpu") == "32-true"


def test_training_on_the_cpu_of_a_machine_with_a_gpu(gpu, tmp_path, digits):
    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(tmp_path, 1, accelerator="cpu", logger=False, enable_progress_bar=False)
    assert trainer.precision == "32-true"
    assert not torch.backends.cuda.matmul.allow_tf32
    data = digits()
    data.trainer = trainer
    assert not data.train_dataloader().pin_memory


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, True), ({"float32_precision": "high"}, True), ({"float32_precision": "highest"}, False)],
)
def test_one_setting_for_matmuls_and_convolutions(gpu, monkeypatch, tmp_path, settings, expected):
    # Lightning itself gets a CPU, since there is no GPU to open
    monkeypatch.setattr("rcg_lightning.trainer.on_cuda", lambda accelerator: True)
    Trainer(tmp_path, 1, accelerator="cpu", logger=False, enable_progress_bar=False, **settings)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (expected, expected)
    assert torch.get_float32_matmul_precision() == ("high" if expected else "highest")


@pytest.mark.parametrize(
    ("on_gpu", "settings", "expected"),
    [
        (True, {"precision": "bf16-mixed"}, True),
        (True, {"precision": "32-true"}, True),  # TF32
        (True, {"precision": "32-true", "float32_precision": "highest"}, False),
        (True, {"precision": "bf16-mixed", "channels_last": False}, False),
        (False, {}, False),
        (False, {"channels_last": True}, True),
    ],
)
def test_convolutions_are_channels_last_where_tensor_cores_compute_them(
    monkeypatch, tmp_path, on_gpu, settings, expected
):
    monkeypatch.setattr("rcg_lightning.trainer.on_cuda", lambda accelerator: on_gpu)
    trainer = Trainer(tmp_path, 1, accelerator="cpu", logger=False, enable_progress_bar=False, **settings)
    assert trainer.channels_last is expected


def test_the_next_run_in_a_process_starts_with_torchs_own_precision():
    set_float32_precision("high")
    reset_torch()
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_earlier_name_of_the_precision_names_the_setting(tmp_path):
    assert familiar_option("trainer.tf32", {"trainer.float32_precision"}) == "did you mean trainer.float32_precision?"

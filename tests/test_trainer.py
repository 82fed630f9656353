import pytest

from rcg_lightning.errors import UserError
from rcg_lightning.trainer import Trainer


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
    [{"limit_train_batches": 0.5}, {"limit_train_batches": 3}, {"limit_val_batches": 0}, {"devices": "auto"}],
    ids=str,
)
def test_settings_in_range_are_accepted(settings, tmp_path):
    Trainer(tmp_path, accelerator="cpu", logger=False, **settings)

"""A lack of memory is one line with the setting to lower, and by how much."""

import pytest
import torch

from rcg_lightning.cli import main as cli
from rcg_lightning.cli.out_of_memory import in_training, shortage
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.discriminators import PatchDiscriminator
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.tokenizer import Adversary, TokenizerStage
from rcg_lightning.types import DataSpec

ON_A_GPU = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB"
GPU_MESSAGE = "GPU is out of memory (for another 2.50 GiB)"
FIT = ["fit", "--config", "digits/dit", "--data.source.limit=64", "--trainer.accelerator=cpu", "--trainer.logger=false"]


@pytest.fixture
def hungry(monkeypatch):
    """Let the losses of a diffusion stage raise an error, or request more memory than any machine has."""

    def make(error=None):
        def losses(self, batch):
            if error is not None:
                raise error
            return {"loss": torch.empty(1 << 55).sum()}

        monkeypatch.setattr(DiffusionStage, "losses", losses)

    return make


@pytest.mark.parametrize("on_gpu", [True, False])
def test_training_names_batch_size_accumulation_and_checkpointing(hungry, raised, tmp_path, on_gpu):
    hungry(torch.OutOfMemoryError(ON_A_GPU) if on_gpu else None)
    more = ["--data.batch_size=32", "--trainer.accumulate_grad_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    output = raised(*FIT, *more, "--trainer.enable_progress_bar=false")
    assert (GPU_MESSAGE if on_gpu else "this machine is out of memory") in output
    assert "lower data.batch_size from 32 to 16" in output
    assert "raise trainer.accumulate_grad_batches from 2 to 4, so that a step still has 64 images" in output
    assert "or set model.denoiser.network.checkpointing true" in output


def test_useless_advice_is_not_given(make_stage):
    spec = DataSpec((1, 8, 8))
    stage = make_stage().build(spec)
    assert "checkpointing" in in_training(stage, 1, 1)
    assert "batch_size" not in in_training(stage, 1, 1)
    stage.denoiser.network.checkpointing = True
    assert in_training(stage, 1, 1) == "choose a smaller network"
    assert in_training(stage, 3, 1).startswith("lower data.batch_size from 3 to 1 with raise")


def test_two_optimizers_accumulate_parts_of_a_batch():
    network, adversary = MaskGITVQGAN(1, 4, (1, 2), 1, 8, 4, 2), Adversary(PatchDiscriminator(4, 1), AdamW())
    stage = TokenizerStage(network, AdamW(), adversary=adversary, accumulate=2).build(DataSpec((1, 8, 8)))
    output = in_training(stage, 64, 1)
    assert "raise model.accumulate from 2 to 4" in output
    assert "set model.network.checkpointing true" in output
    assert "batch_size" not in output


def many(batch_size: int = 256) -> None:
    """Make many samples."""
    raise torch.OutOfMemoryError(ON_A_GPU)


def read(data: ImageDataModule) -> None:
    """Read images."""
    raise MemoryError("Unable to allocate 7.45 GiB for an array")


def tiled(batch_size: int = 256, tile: int | None = None) -> None:
    """Sample in tiles."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_commands_that_sample_name_the_tile():
    with pytest.raises(UserError, match=r"lower --tile from 64 to 32$"):
        call(tiled, "tiled", ["--tile=64"], names=False)
    with pytest.raises(UserError, match="give --tile 16, or less"):
        call(tiled, "tiled", [], names=False)


def test_other_commands_name_their_batch_size():
    with pytest.raises(UserError, match=r"GPU is out of memory .*: lower --batch_size from 256 to 128$"):
        call(many, "many", [], names=False)
    with pytest.raises(UserError, match="batch_size is 1 already"):
        call(many, "many", ["--batch_size=1"], names=False)
    with pytest.raises(UserError, match=r"7\.45 GiB\): lower --data.batch_size from 40 to 20$"):
        call(read, "read", ["--data.source", "Digits", "--data.batch_size=40"])


def test_the_cause_of_an_error_is_found_and_other_errors_are_left_alone():
    wrapped = RuntimeError("training failed")
    wrapped.__cause__ = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes.")
    assert shortage(wrapped) == "this machine is out of memory (for another 12 bytes)"
    assert shortage(RuntimeError("shapes differ")) is None
    assert cli.verdict(wrapped) == (2, "this machine is out of memory (for another 12 bytes): lower the batch size")

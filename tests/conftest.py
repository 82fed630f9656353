"""Fixtures: small stages, data and trainers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import rcg_process

SLOW_FOLDERS = ("agreement", "bench", "callbacks", "cli", "configs", "official", "pipeline", "sampling", "stages")

pytest_plugins = ["helpers.cli_fixtures", "helpers.evaluation_fixtures"]

# torch and Lightning are slow to import: tests that need neither stage nor data should not wait for them


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` leaves out: whole commands, trainings of every config, and several processes."""
    for item in items:
        folder = item.path.parent.name
        if folder == "distributed" or "rcg_process" in getattr(item.module, "__dict__", {}):
            item.add_marker(pytest.mark.distributed)
        if folder in SLOW_FOLDERS or {"toy", "finished"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def make_stage():
    """Make a tiny diffusion stage; ``condition`` and every other argument of DiffusionStage can be given."""
    from rcg_lightning.conditions.none import NoCondition
    from rcg_lightning.core.samplers import DDIM
    from rcg_lightning.core.schedule import CosineSchedule
    from rcg_lightning.networks.conditioner import Conditioner
    from rcg_lightning.networks.denoiser import Denoiser
    from rcg_lightning.networks.ema import EMA
    from rcg_lightning.networks.rdm_mlp import ModulatedMLP
    from rcg_lightning.pretrained.codecs import Pixels
    from rcg_lightning.stages.diffusion import DiffusionStage
    from rcg_lightning.stages.optimization import AdamW, ConstantLR

    def make(condition=None, **settings):
        given = {
            "codec": Pixels(),
            "denoiser": Denoiser(ModulatedMLP(width=16, depth=1, time_dim=16), CosineSchedule(100)),
            "conditioner": Conditioner(drop=0.2),
            "optimizer": AdamW(lr=1e-2, lr_schedule=ConstantLR(warmup=2)),
            "ema": EMA(0.5),
            "sampler": DDIM(4),
            "tile": 16,
        }
        return DiffusionStage(condition=condition or NoCondition(), **given | settings)

    return make


@pytest.fixture
def awake():
    """Perturb all weights of a built stage at random: zero-initialised layers hide mistakes."""

    def shake(stage, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return stage

    return shake


@pytest.fixture
def save():
    """Write the checkpoint of a built stage without training it."""

    def write(stage, path):
        checkpoint = {"state_dict": stage.state_dict()}
        stage.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        return path

    return write


@pytest.fixture
def digits():
    """Digits as a data module; with ``folder`` they have stored representations (6-d) and clusters (3)."""
    from rcg_lightning.data.data_module import ImageDataModule
    from rcg_lightning.data.datasets import Digits
    from rcg_lightning.data.store_writer import StoreWriter

    def make(folder=None, batch_size=32, encoder="encoder-1"):
        if folder is None:
            return ImageDataModule(Digits(), batch_size=batch_size)
        data, paths = ImageDataModule(Digits()), {}
        projection = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
        for split in ("train", "eval"):
            paths[split] = folder / f"{split}-{encoder}"
            if paths[split].exists():
                continue
            pixels = data.images(split).array.reshape(len(data.images(split)), -1) / 255
            identity = {**data.store_identity(split), "representation": encoder, "cluster": f"{encoder}-k3"}
            writer = StoreWriter(paths[split], len(pixels), 1, 512, identity)
            for shard in writer.pending():
                rows = ((pixels[shard.start : shard.stop] - 0.3) @ projection).astype(np.float32)
                columns = {"representation": rows[:, None], "cluster": np.argmax(rows[:, :3], 1)[:, None]}
                writer.write(shard, columns)
            writer.finish({"cluster": {"count": 3, "sizes": [600, 600, 146]}})
        return ImageDataModule(Digits(), batch_size=batch_size, stores=[paths["train"]], eval_stores=[paths["eval"]])

    return make


@pytest.fixture
def trainer():
    """Make a quiet Trainer on the CPU."""
    from rcg_lightning.trainer import Trainer

    def make(folder, steps, **settings):
        given = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "precision": "32-true"}
        return Trainer(folder, steps, **given | settings)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder that holds toy/, the output of the pipeline toy.yaml, run in its own process without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    pipeline = Path(__file__).parent / "helpers" / "toy.yaml"
    code = rcg_process.finish(rcg_process.start(["pipeline", pipeline, "--root", folder], folder))
    assert code == 0, (folder / "output.txt").read_text()[-2000:]
    return folder

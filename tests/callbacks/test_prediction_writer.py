"""Predictions are written to a store shard by shard, and continue after an interruption."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.callbacks.prediction_writer import predict_store
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.stages.sampling import GuidedSampling
from rcg_lightning.types import DataSpec

SEEDS = [5, 3, 900, 3, *range(40)]


class Killed(Exception):
    pass


class Kill(Callback):
    def on_predict_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 3:
            raise Killed


def test_killed_sampling_continues_to_the_same_store(make_stage, awake, trainer, tmp_path):
    stage = awake(make_stage(ClassCondition()).build(DataSpec((1, 8, 8), classes=10)))

    def sample(name, batch_size, *callbacks):
        writer = StoreWriter(tmp_path / name, len(SEEDS), 1, 16, {"generator": stage.identity})
        data = SeedDataModule(SEEDS, batch_size)
        data.only(writer.pending())
        done = len(SEEDS) - sum(shard.stop - shard.start for shard in writer.pending())
        fit = trainer(tmp_path, 1, callbacks=callbacks)
        return done, predict_store(fit, GuidedSampling(stage), data, writer).whole("image")[:, 0]

    _, whole = sample("whole", 16)
    assert whole.shape == (44, 8, 8, 1)
    expected = stage.predict_step({"index": torch.tensor([900]), "label": sampled_label(stage, 900)}, 0)
    assert torch.equal(torch.from_numpy(whole[2:3]), expected["image"])
    assert (whole[1] == whole[3]).all()

    with pytest.raises(Killed):
        sample("killed", 7, Kill())  # three batches of 7, 7 and 2: the first shard is complete
    done, continued = sample("killed", 16)
    assert done == 16
    assert (continued == whole).all()
    assert sample("killed", 16)[0] == len(SEEDS)


def sampled_label(stage, seed):
    return stage.condition.sample({"seed": torch.tensor([seed])})[0]

"""When metrics are taken in training."""

import pytest
import torch

from rcg_lightning.callbacks.fidelity import Fidelity
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.network_folder import save_network


class Noted(Fidelity):
    """Notes the steps at which it scored."""

    def on_validation_epoch_end(self, trainer, pl_module):
        super().on_validation_epoch_end(trainer, pl_module)
        if self.due:
            self.steps = [*getattr(self, "steps", []), trainer.global_step]


@pytest.fixture
def fidelity(tmp_path):
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (4, 6)), 10)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 10, "dim": 6})
    return lambda **settings: Noted(ClassifierExtractor(tmp_path / "classifier"), count=32, **settings)


def test_every_nth_validation_is_scored_also_after_a_resume(make_stage, digits, trainer, fidelity, tmp_path):
    run = {"val_check_interval": 1, "limit_val_batches": 1}
    whole, first, second = fidelity(every=3), fidelity(every=3), fidelity(every=3)
    trainer(tmp_path / "whole", 6, callbacks=[whole], **run).fit(make_stage(sampler=DDIM(2)), digits())
    assert whole.steps == [3, 6]
    trainer(tmp_path / "parts", 4, callbacks=[first], **run).fit(make_stage(sampler=DDIM(2)), digits())
    resumed = trainer(tmp_path / "parts", 6, callbacks=[second], **run)
    resumed.fit(make_stage(sampler=DDIM(2)), digits(), ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert (first.steps, second.steps) == ([3], [6])


def test_an_interval_is_at_least_one(fidelity):
    with pytest.raises(UserError, match="n at least 1, not 0"):
        fidelity(every=0)


def test_coverage_is_logged_where_asked_for(make_stage, digits, trainer, fidelity, tmp_path):
    run = trainer(tmp_path, 1, callbacks=[fidelity(coverage=True)], val_check_interval=1, limit_val_batches=1)
    run.fit(make_stage(sampler=DDIM(2)), digits())
    names = {name.partition("/")[0] for name in run.callback_metrics}
    assert {"fd", "precision", "recall", "density", "coverage"} <= names

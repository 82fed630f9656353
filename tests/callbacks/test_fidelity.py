"""The validations at which sample metrics are computed."""

import pytest

from rcg_lightning.callbacks.fidelity import Fidelity
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError


class RecordedFidelity(Fidelity):
    """Records the steps at which it computes metrics."""

    def on_validation_epoch_end(self, trainer, pl_module):
        super().on_validation_epoch_end(trainer, pl_module)
        if self.due:
            self.steps = [*getattr(self, "steps", []), trainer.global_step]


@pytest.fixture
def fidelity(extractor):
    return lambda **settings: RecordedFidelity(extractor, count=32, **settings)


def test_every_nth_validation_is_evaluated_also_after_a_resume(make_stage, digits, trainer, fidelity, tmp_path):
    run = {"val_check_interval": 1, "limit_val_batches": 1}
    whole, first, second = fidelity(every=3), fidelity(every=3), fidelity(every=3)
    trainer(tmp_path / "whole", 6, callbacks=[whole], **run).fit(make_stage(sampler=DDIM(2)), digits())
    assert whole.steps == [3, 6]
    trainer(tmp_path / "parts", 4, callbacks=[first], **run).fit(make_stage(sampler=DDIM(2)), digits())
    resumed = trainer(tmp_path / "parts", 6, callbacks=[second], **run)
    resumed.fit(make_stage(sampler=DDIM(2)), digits(), ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert (first.steps, second.steps) == ([3], [6])


def test_an_interval_is_at_least_one(fidelity):
    with pytest.raises(UserError, match="at least 1"):
        fidelity(every=0)


def test_coverage_is_logged_where_requested(make_stage, digits, trainer, fidelity, tmp_path):
    run = trainer(tmp_path, 1, callbacks=[fidelity(coverage=True)], val_check_interval=1, limit_val_batches=1)
    run.fit(make_stage(sampler=DDIM(2)), digits())
    names = {name.partition("/")[0] for name in run.callback_metrics}
    assert {"fd", "precision", "recall", "density", "coverage"} <= names

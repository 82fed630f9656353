"""Early stopping by the likelihood of validation images."""

import pytest
import torch

from rcg_lightning.callbacks.parzen_stopping import ParzenStopping
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.parzen import ParzenImages
from rcg_lightning.stages.generator import Generator


class MockedLikelihood(ParzenStopping):
    """Records the true likelihoods and returns the given ones."""

    def __init__(self, likelihoods, **settings):
        super().__init__(count=20, **settings)
        self.likelihoods, self.evaluated = iter(likelihoods), []

    def _likelihood(self, trainer, generator):
        self.evaluated.append((trainer.global_step, *super()._likelihood(trainer, generator)))
        return next(self.likelihoods), 0.2


def test_the_best_weights_are_stored_and_worse_ones_stop_the_training(make_stage, digits, trainer, tmp_path):
    stopping = MockedLikelihood([1.0, 3.0, 2.0, 2.5, 9.0], patience=2)
    run = trainer(tmp_path, 10, callbacks=[stopping], val_check_interval=1, limit_val_batches=1)
    run.fit(make_stage(ClassCondition(), sampler=DDIM(2)), digits())
    assert [step for step, *_ in stopping.evaluated] == [1, 2, 3, 4]
    assert run.global_step == 4
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2
    assert isinstance(Generator.load(tmp_path / "best.ckpt"), Generator)
    assert all(likelihood < 0 for _, likelihood, _ in stopping.evaluated)  # of grey noise


def test_the_best_likelihood_survives_a_resume(make_stage, digits, trainer, tmp_path):
    settings = {"val_check_interval": 1, "limit_val_batches": 1}
    first = MockedLikelihood([5.0, 1.0], patience=3)
    trainer(tmp_path, 2, callbacks=[first], **settings).fit(make_stage(sampler=DDIM(2)), digits())
    second = MockedLikelihood([2.0, 3.0, 4.0], patience=3)
    run = trainer(tmp_path, 9, callbacks=[second], **settings)
    run.fit(make_stage(sampler=DDIM(2)), digits(), ckpt_path=tmp_path / "last.ckpt")
    assert run.global_step == 4


def test_validation_images_choose_and_all_evaluation_images_are_scored(monkeypatch):
    source, read = Digits(), []
    real = ParzenImages(ImageDataModule(source))
    assert (len(real.validation), len(real.test)) == (91, 360)
    validation = Digits(limit=30).train()
    monkeypatch.setattr(source, "validation", lambda: validation)
    data = ImageDataModule(source)
    batches = data.deterministic_batches
    monkeypatch.setattr(data, "deterministic_batches", lambda split, *more: read.append(split) or batches(split, *more))
    real = ParzenImages(data)
    assert torch.equal(real.validation, torch.from_numpy(validation.array))
    assert torch.equal(real.test, torch.from_numpy(source.evaluation().array))
    samples = torch.from_numpy(Digits(limit=40).train().array)
    assert real.metrics(samples) == real.metrics(samples)
    assert read == ["validation", "eval", "train"]  # each once


def test_a_generator_of_representations_is_rejected(make_stage, digits, trainer, tmp_path):
    from rcg_lightning.pretrained.codecs import Representations

    run = trainer(tmp_path, 1, callbacks=[ParzenStopping()])
    with pytest.raises(UserError, match="generator of images"):
        run.fit(make_stage(codec=Representations()), digits(tmp_path / "stores"))

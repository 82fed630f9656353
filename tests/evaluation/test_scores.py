import dataclasses

import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation import reference as references
from rcg_lightning.evaluation.metrics import Moments
from rcg_lightning.evaluation.reference import Reference, batches, real_pictures, reference_of
from rcg_lightning.evaluation.scores import Scorer, score

NAMES = {"fd", "fd_heldout", "is", "precision", "recall", "nearest", "copy_rate"}


def test_every_metric_comes_out_in_one_call(data, extractor, samples):
    found = score(samples, reference_of(data, extractor, None), extractor)
    assert found.keys() == NAMES
    assert found["fd"] > 0
    assert 1 <= found["is"] <= 5


def test_real_pictures_are_nearer_than_samples_and_training_pictures_are_copies(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    train = torch.cat(list(real_pictures(data, "train")))
    held = torch.cat(list(real_pictures(data, "heldout")))
    made, unseen, seen = (score(pictures, reference, extractor) for pictures in (samples, held, train))
    assert seen["fd"] == pytest.approx(0, abs=1e-9)
    assert seen["fd"] < unseen["fd"] < made["fd"]
    assert unseen["fd_heldout"] == pytest.approx(0, abs=1e-9)
    assert (seen["precision"], seen["recall"]) == (1.0, 1.0)
    assert (seen["copy_rate"], seen["nearest"]) == (1.0, 0.0)
    assert unseen["copy_rate"] == pytest.approx(0.01, abs=0.005)


def test_batches_of_any_size_give_the_same_figures_to_the_last_digit(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    whole = score(samples, reference, extractor)
    assert score(samples.split(7), reference, extractor) == whole
    assert score(iter(samples.split(270)), reference, extractor) == whole
    assert [len(batch) for batch in batches(torch.zeros(600, 1, 2, 2).split(300))] == [256, 256, 88]


def test_a_scorer_fed_by_hand_agrees_whatever_its_batches(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    scorer = Scorer(extractor, reference)
    for _ in range(2):  # the second time after a reset
        for part in samples.split(33):
            scorer.update(part)
        found = scorer.compute()
        scorer.reset()
        assert found == pytest.approx(score(samples, reference, extractor), rel=1e-4)


def test_names_tell_what_a_figure_depends_on(data, extractor, samples):
    scorer = Scorer(extractor, reference_of(data, extractor, None))
    scorer.update(samples)
    assert scorer.full_names(scorer.compute(), 300).keys() == {
        "fd/classifier_300_train",
        "fd/classifier_300_heldout",
        "is/classifier_300",
        "precision/classifier_300_train",
        "recall/classifier_300_train",
        "nearest/pixels_300_train",
        "copy_rate/pixels_300_train",
    }


def test_a_reference_is_measured_once(data, extractor, samples, tmp_path, monkeypatch):
    first = reference_of(data, extractor, tmp_path / "cache")
    monkeypatch.setattr(Reference, "measure", None)  # calling it again would fail
    again = reference_of(data, extractor, tmp_path / "cache")
    assert score(samples, again, extractor) == score(samples, first, extractor)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        reference_of(data, extractor, tmp_path / "cache")


def test_published_statistics_give_a_distance_and_nothing_of_neighbours(data, extractor, samples, tmp_path):
    full = reference_of(data, extractor, None)
    dataclasses.replace(full.train.moments, identity=None, count=None).save(tmp_path / "stats.npz")
    found = score(samples, Reference.from_statistics(tmp_path / "stats.npz"), extractor)
    assert found.keys() == {"fd", "is"}
    assert found["fd"] == pytest.approx(score(samples, full, extractor)["fd"], rel=1e-10)


def test_a_reference_of_another_extractor_is_refused(data, extractor, samples):
    full = reference_of(data, extractor, None)
    moments = Moments(full.train.moments.mean, full.train.moments.covariance, 600, "another")
    other = dataclasses.replace(full, train=dataclasses.replace(full.train, moments=moments))
    with pytest.raises(UserError, match="another"):
        score(samples, other, extractor)


def test_large_sets_keep_evenly_spread_features_and_no_pictures(data, extractor, monkeypatch):
    whole = reference_of(data, extractor, None).train
    monkeypatch.setattr(references, "FEATURES_KEPT", 50)
    monkeypatch.setattr(references, "BYTES_KEPT", 1000)
    small = Reference.measure(real_pictures(data, "train"), real_pictures(data, "heldout"), extractor)
    assert small.train.pictures is None
    assert small.copy_threshold is None
    assert len(small.train.features) == 50
    kept = [int((whole.features == row).all(1).nonzero()[0]) for row in small.train.features]
    assert np.diff(kept).min() >= 8  # 600 / 64 rounded: a stride that doubled, then thinned
    torch.testing.assert_close(small.train.moments.covariance, whole.moments.covariance)

import dataclasses
import logging

import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation import reference as references
from rcg_lightning.evaluation.reference import Reference, batches, real_images, reference_of
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.evaluation.scorer import CHEAP, EVERY, Scorer, score
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.prdc import density_coverage, precision_recall
from rcg_lightning.types import to_uint8

NAMES = {"fd", "fd_eval", "is", "precision", "recall", "nearest", "copy_rate"}


def test_one_call_returns_every_metric(data, extractor, samples):
    found = score(samples, reference_of(data, extractor, None), extractor)
    assert found.keys() == NAMES
    assert found["fd"] > 0
    assert 1 <= found["is"] <= 5


def test_real_images_are_nearer_than_samples_and_training_images_are_copies(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    train = torch.cat(list(real_images(data, "train")))
    evaluation = torch.cat(list(real_images(data, "eval")))
    generated, unseen, seen = (score(images, reference, extractor) for images in (samples, evaluation, train))
    assert seen["fd"] == pytest.approx(0, abs=1e-9)
    assert seen["fd"] < unseen["fd"] < generated["fd"]
    assert unseen["fd_eval"] == pytest.approx(0, abs=1e-9)
    assert (seen["precision"], seen["recall"]) == (1.0, 1.0)
    assert (seen["copy_rate"], seen["nearest"]) == (1.0, 0.0)
    assert unseen["copy_rate"] == pytest.approx(0.01, abs=0.005)


def test_batches_of_any_size_give_the_same_metrics_to_the_last_digit(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    whole = score(samples, reference, extractor)
    assert score(samples.split(7), reference, extractor) == whole
    assert score(iter(samples.split(270)), reference, extractor) == whole
    assert [len(batch) for batch in batches(torch.zeros(600, 1, 2, 2).split(300))] == [256, 256, 88]


def test_a_scorer_agrees_for_any_batches(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    scorer = Scorer(extractor, reference)
    for _ in range(2):  # the second time after a reset
        for part in samples.split(33):
            scorer.update(part)
        found = scorer.compute()
        scorer.reset()
        assert found == pytest.approx(score(samples, reference, extractor), rel=1e-4)


def test_names_contain_extractor_number_and_reference(data, extractor, samples):
    scorer = Scorer(extractor, reference_of(data, extractor, None))
    scorer.update(samples)
    assert scorer.full_names(scorer.compute(), 300).keys() == {
        "fd/classifier_300_train",
        "fd/classifier_300_eval",
        "is/classifier_300",
        "precision/classifier_300_train",
        "recall/classifier_300_train",
        "nearest/pixels_300_train",
        "copy_rate/pixels_300_train",
    }


def test_a_reference_is_measured_once(data, extractor, samples, tmp_path, monkeypatch, caplog):
    first = reference_of(data, extractor, tmp_path / "cache")
    monkeypatch.setattr(Reference, "measure", None)  # calling it again would fail
    again = reference_of(data, extractor, tmp_path / "cache")
    assert score(samples, again, extractor) == score(samples, first, extractor)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    damaged = [whole[:-100], b"", *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 90, 5000, -1))]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file.name}.*damaged"):
            Reference.load(file)
    monkeypatch.undo()
    healed = reference_of(data, extractor, tmp_path / "cache")
    assert "measuring it again" in caplog.text
    assert score(samples, healed, extractor) == score(samples, first, extractor)
    assert Reference.load(file).identity == first.identity


def test_published_statistics_give_a_distance_and_no_neighbour_metrics(data, extractor, samples, tmp_path):
    full = reference_of(data, extractor, None)
    dataclasses.replace(full.train.moments, identity=None, count=None).save(tmp_path / "stats.npz")
    found = score(samples, read_statistics(tmp_path / "stats.npz"), extractor)
    assert found.keys() == {"fd", "is"}
    assert found["fd"] == pytest.approx(score(samples, full, extractor)["fd"], rel=1e-10)


def test_a_reference_of_another_extractor_is_rejected(data, extractor, samples):
    full = reference_of(data, extractor, None)
    moments = Moments(full.train.moments.mean, full.train.moments.covariance, 600, "another")
    other = dataclasses.replace(full, train=dataclasses.replace(full.train, moments=moments))
    with pytest.raises(UserError, match="another"):
        score(samples, other, extractor)


def test_large_sets_store_evenly_spread_features_and_no_images(data, extractor, monkeypatch):
    whole = reference_of(data, extractor, None).train
    monkeypatch.setattr(references, "MAX_STORED_FEATURES", 50)
    monkeypatch.setattr(references, "MAX_STORED_BYTES", 1000)
    small = Reference.measure(real_images(data, "train"), real_images(data, "eval"), extractor)
    assert small.train.images is None
    assert small.copy_threshold is None
    assert len(small.train.features) == 50
    positions = [int((whole.features == row).all(1).nonzero()[0]) for row in small.train.features]
    assert np.diff(positions).min() >= 8  # 600 / 64 rounded: a stride that doubled, then thinned
    torch.testing.assert_close(small.train.moments.covariance, whole.moments.covariance)


def test_groups_of_metrics_are_chosen(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    assert score(samples, reference, extractor, metrics=CHEAP).keys() == {"fd", "fd_eval", "is"}
    found = score(samples, reference, extractor, metrics=EVERY)
    assert found.keys() == NAMES | {"kd", "kd_std", "density", "coverage"}
    features, real = extractor(samples).pooled, reference.train.features
    assert (found["density"], found["coverage"]) == pytest.approx(density_coverage(features, real), rel=1e-3)
    three = score(samples, reference, extractor, metrics=EVERY, neighbours=3)
    assert (three["precision"], three["recall"]) == pytest.approx(precision_recall(features, real, 3), rel=1e-3)
    with pytest.raises(UserError, match="no metrics"):
        Scorer(extractor, reference, frozenset({"fid"}))
    with pytest.raises(UserError, match="1 to 5"):
        Scorer(extractor, reference, neighbours=6)


def test_two_processes_that_share_the_samples_agree_with_one(data, extractor, samples):
    reference = reference_of(data, extractor, None)
    index = torch.arange(len(samples))
    scorers = [Scorer(extractor, reference, EVERY - {"pixels"}) for _ in range(3)]
    for scorer, mine in zip(scorers, (index, index[0::2], index[1::2])):
        for part in mine.split(40):
            scorer.update(samples[part], part)
    alone, first, second = scorers
    other = second.statistics
    arriving = iter(other._defaults)  # states are gathered in this order

    def gather(mine, group=None):
        theirs = getattr(other, next(arriving))
        return [mine, torch.cat(theirs) if isinstance(theirs, list) else theirs]

    first.statistics.dist_sync_fn, first.statistics.distributed_available_fn = gather, lambda: True
    assert first.compute() == pytest.approx(alone.compute(), rel=1e-5)


def test_a_process_without_a_sample_takes_part(data, extractor, samples):
    scorer = Scorer(extractor, reference_of(data, extractor, None))
    metric, shapes = scorer.statistics, []

    def gather(mine, group=None):
        shapes.append(tuple(mine.shape))
        return [mine, mine]

    metric.sync(gather, distributed_available=lambda: True)
    assert shapes[-2:] == [(0, 12), (0,)]
    metric.unsync()
    scorer.update(samples)
    assert scorer.compute()["fd"] > 0


def test_images_of_another_size_are_rejected(data, extractor, samples, tmp_path):
    reference_of(data, extractor, tmp_path)
    reference = reference_of(data, extractor, tmp_path)  # read from its file
    with pytest.raises(UserError, match="samples of 8x4 pixels, a reference of 8x8"):
        score(samples[..., :4], reference, extractor)


def test_too_few_samples_are_warned_of_once_with_the_bias(data, extractor, samples, caplog):
    reference = reference_of(data, extractor, None)
    with caplog.at_level(logging.WARNING):
        scorer = Scorer(extractor, reference)
        for _ in range(2):
            scorer.update(samples[:12])
            scorer.compute()
            scorer.reset()
        assert len(caplog.records) == 1
        line = caplog.records[0].message
        assert "12 samples for 12 features" in line
        assert "biased upwards" in line
        assert "\n" not in line
        caplog.clear()
        score(samples[:13], reference, extractor)
        assert not caplog.records
        score(samples, Reference.measure(samples[:9], None, extractor), extractor)
        assert "9 reference images for 12 features" in caplog.text


def test_constant_images_are_warned_of_and_scored(data, extractor, caplog):
    reference = reference_of(data, extractor, None)
    with caplog.at_level(logging.WARNING):
        found = score(torch.full((40, 1, 8, 8), 90, dtype=torch.uint8), reference, extractor, metrics=EVERY)
    assert [record.message for record in caplog.records] == [
        "all samples have the same features: are they one constant image?"
    ]
    assert found["is"] == pytest.approx(1, abs=1e-6)
    assert all(np.isfinite(value) for value in found.values())
    assert found["fd"] > 1e-3


def test_a_batch_with_nan_features_is_rejected_when_it_is_added(data, extractor, samples, monkeypatch):
    scorer = Scorer(extractor, reference_of(data, extractor, None))
    broken = extractor(samples)
    broken.pooled[3, 4] = float("nan")
    monkeypatch.setattr(type(extractor), "__call__", lambda self, images: broken)
    with pytest.raises(UserError, match="NaN"):
        scorer.update(samples)


def test_spatial_moments_and_sizes_come_back_from_the_file(data, extractor, samples, tmp_path):
    full = reference_of(data, extractor, None)
    known = full.train.moments
    spatial = Moments(known.mean + 1, 2 * known.covariance, 600, "spatial")
    train = dataclasses.replace(full.train, spatial=spatial)
    dataclasses.replace(full, train=train).save(tmp_path / "reference.safetensors")
    loaded = Reference.load(tmp_path / "reference.safetensors")
    assert loaded.train.spatial.identity == "spatial"
    assert fid(loaded.train.spatial, spatial) == pytest.approx(0, abs=1e-9)
    assert (loaded.train.size, loaded.evaluation.size, loaded.evaluation.spatial) == ((8, 8), (8, 8), None)
    assert torch.equal(loaded.radii, full.radii)


def test_nan_samples_never_become_images():
    images = torch.full((4, 1, 8, 8), 0.5)
    assert to_uint8(images).unique().tolist() == [128]
    images[2, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match="1 of 4 images hold NaN"):
        to_uint8(images)


def test_samples_of_the_requested_class_are_counted(data, extractor, samples, tmp_path):
    scorer = Scorer(extractor, reference_of(data, extractor, tmp_path), CHEAP)
    scorer.update(samples[:10])
    assert "class_accuracy" not in scorer.compute()
    predicted = extractor(samples)[1].argmax(1)
    label = torch.where(
        torch.arange(len(samples)) % 4 == 0, (predicted + 1) % 10, predicted
    )  # every fourth label is wrong
    scorer.reset()
    for part, requested in zip(samples.split(7), label.split(7)):
        scorer.update(part, label=requested)
    accuracy = 1 - len(samples[::4]) / len(samples)
    assert scorer.compute()["class_accuracy"] == pytest.approx(accuracy)
    assert scorer.full_names({"class_accuracy": 1.0}, 9) == {f"class_accuracy/{extractor.name}_9": 1.0}

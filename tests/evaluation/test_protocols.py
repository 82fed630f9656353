"""Metrics record their protocol, and metrics of different protocols are not compared."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import (
    Protocol,
    bind_data,
    bind_representations,
    bind_samples,
    bind_statistics,
    find_protocol,
    presets,
)
from rcg_lightning.evaluation.records import comparable, differences
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.types import to_uint8

TRAIN = {"set": "train", "identity": "abc"}


@pytest.mark.parametrize("name", sorted(presets()))
def test_named_protocols_are_plain_data(name):
    protocol = find_protocol(name)
    description = json.loads(json.dumps(describe(protocol)))
    assert describe(construct(description)) == description
    assert protocol.name == name


def test_a_wrong_name_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean val-50k"):
        find_protocol("val-5k")


def test_truncation_darkens_and_rounding_does_not():
    grey_values = torch.arange(256).reshape(1, 1, 16, 16) / 255
    image = (grey_values + 0.6 / 255).clamp(max=1)
    truncated = Protocol(quantisation="truncate").quantise(image)
    assert torch.equal(truncated, (image * 255).to(torch.uint8))
    assert torch.equal(Protocol(quantisation="truncate").quantise(grey_values), to_uint8(grey_values))
    assert torch.equal(Protocol().quantise(image), to_uint8(image))
    for broken in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or infinity"):
            Protocol(quantisation="truncate").quantise(torch.full((1, 1, 2, 2), broken))


def test_a_variant_of_a_named_protocol_names_its_changes(extractor):
    asked = find_protocol("digits")
    whole = asked.record(extractor, TRAIN | {"resize": "as is"}, 1346, asked=asked)
    assert whole["name"] == "digits"
    assert whole["weights"] == extractor.identity
    used = asked.with_settings(number=60, labels=None)
    assert used.record(extractor, TRAIN, 60, asked=asked)["name"] == "digits with another number"
    published = find_protocol("adm-256")
    assert published.record(extractor, TRAIN, 50_000, "jpeg", asked=published)["name"] == (
        "adm-256 with another extractor, weights, reference, format"
    )


def test_resized_samples_have_another_protocol(extractor, caplog):
    asked = find_protocol("digits")
    whole = asked.record(extractor, TRAIN | {"resize": "as is"}, 1346, "png", asked)
    resized = asked.record(extractor, TRAIN | {"resize": "as is"}, 1346, "png", asked, "shorter side 8, centre 8")
    assert resized["name"] == "digits with another resize of samples"
    assert not comparable(whole, resized)
    assert "samples_resize as is and shorter side 8, centre 8" in caplog.text


def test_one_warning_names_all_differences(extractor, caplog):
    one = Protocol().record(extractor, TRAIN, 100)
    assert comparable(one, json.loads(json.dumps(one)))
    assert comparable(one, Protocol().record(extractor, TRAIN, 100, "png"))  # the same pixels
    assert not caplog.records
    other = Protocol(neighbours=3).record(extractor, TRAIN | {"identity": "xyz"}, 50, "jpeg")
    assert not comparable(one, other | {"weights": "another"})
    (record,) = caplog.records
    for word in ("number 100 and 50", "neighbours 5 and 3", "another", "train abc and train xyz", "lossless and jpeg"):
        assert word in record.getMessage()
    assert not comparable(one, None)
    assert differences(one, one) == []


def test_a_reference_is_bound_with_its_checksum(data, extractor, samples, tmp_path):
    both, spec = bind_data(Protocol(), data, extractor, None, "cpu")
    assert spec["identity"] == data.images("train").fingerprint
    evaluation, spec = bind_data(Protocol(reference="eval"), data, extractor, None, "cpu")
    assert (evaluation.name, spec["set"], spec["images"]) == ("eval", "eval", 200)
    of_both, of_evaluation = (score(samples, real, extractor) for real in (both, evaluation))
    assert of_evaluation["fd"] == of_both["fd_eval"]
    assert len(evaluation.train.features) == len(evaluation.radii) == 200
    assert of_evaluation["nearest"] == of_both["nearest"]  # copies are of training images
    assert of_evaluation["copy_rate"] == of_both["copy_rate"]

    both.train.moments.save(tmp_path / "stats.npz")
    real, spec = bind_statistics(tmp_path / "stats.npz", extractor, "cpu")
    assert score(samples, real, extractor)["fd"] == of_both["fd"]
    assert (spec["file"], len(spec["identity"])) == ("stats.npz", 64)

    for name, images in (("a", samples), ("b", samples.flip(0))):
        np.savez(tmp_path / f"{name}.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    (one, first), (_, other) = (bind_samples(tmp_path / f"{name}.npz", extractor, "cpu") for name in "ab")
    assert first["identity"] != other["identity"]
    assert score(samples, one, extractor)["fd"] == pytest.approx(0, abs=1e-9)
    assert replace(one, name="x").train.images is None


def test_representations_need_a_store_of_the_training_images(digits):
    with pytest.raises(UserError, match=r"as --data\.stores"):
        bind_representations(digits())

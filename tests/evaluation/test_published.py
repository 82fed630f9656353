"""Published metrics as data, next to measured ones."""

import json

import pytest

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import presets
from rcg_lightning.evaluation.published import NOT_YET, Protocol, find_row, find_table, tables
from rcg_lightning.evaluation.reproduction import Measured, comparison, lines, read_metrics, read_results
from rcg_lightning.metrics.metric_name import metric_name

FULL = {"fid/inception_50k_train": 4.0, "is/inception_50k": 170.0, "precision/inception_50k_train": 0.8}


def written(folder, content, name="metrics.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_rows_have_ids_metrics_sources_and_protocols():
    assert len(tables()) > 15
    for name, table in tables().items():
        assert table.name == name
        assert table.title
        assert table.rows
        for key, row in table.rows.items():
            assert row.id == f"{name}/{key}"
            assert find_row(row.id) is row
            assert row.metrics
            assert row.sources
            assert row.metrics.keys() == row.protocols.keys()
            assert row.makes | row.unconfirmed | set(row.errors) <= row.metrics.keys()
            assert all(isinstance(value, float) for value in row.metrics.values())


@pytest.mark.parametrize(
    ("row", "metric", "value"),
    [
        ("imagenet256/mage-b-rcg", "fid", 3.98),
        ("imagenet256/mage-l-rcg-guided", "is", 253.4),
        ("imagenet256/mage-l-rcg", "recall", 0.52),
        ("encoder/dino", "fid", 7.53),
        ("projection/128", "is", 143.3),
        ("depth/18", "rep_fd", 0.50),
        ("width/256", "fid", 12.99),
        ("epochs/300", "is", 144.3),
        ("steps/20", "rep_fd", 0.87),
        ("conditioning/oracle", "fid", 4.37),
        ("generator-epochs/800", "fid", 4.15),
        ("guidance/6", "fid", 2.15),
        ("cifar10/rcg", "fid", 2.62),
        ("icgan/none-128-da", "is", 48.7),
        ("cgan/cgan", "log_likelihood", 132.0),
    ],
)
def test_some_well_known_metrics(row, metric, value):
    assert find_row(row).metrics[metric] == value


def test_the_conditioning_ablation_is_shown_for_digits():
    fid = {key: row.metrics["fid"] for key, row in find_table("digits").rows.items()}
    assert fid == {"none": 14.23, "cluster": 6.60, "class": 5.83, "representation": 5.07, "oracle": 4.37}


def test_metrics_from_memory_only_are_unconfirmed():
    for table in tables().values():
        for row in table.rows.values():
            remembered = any("remembered" in source for source in row.sources)
            assert remembered == bool(row.unconfirmed), row.id
            if all("remembered" in source for source in row.sources):
                assert row.unconfirmed == row.metrics.keys()


def test_ablations_differ_in_one_setting_and_only_existing_stages_train():
    assert find_row("depth/3").trained_by("rep_fd").startswith("imagenet256/rdm --model.denoiser.network.depth 3")
    assert find_row("depth/3").trained_by("fid") == NOT_YET
    assert find_row("imagenet256/ldm-rcg").trained_by("fid") == NOT_YET


def test_unknown_names_get_the_nearest_name():
    with pytest.raises(UserError, match="no published table dept: there are depth"):
        find_table("dept")
    with pytest.raises(UserError, match="did you mean imagenet256/mage-b-rcg"):
        find_row("imagenet256/mage-b-rgc")
    with pytest.raises(UserError, match="rows are named table/row"):
        find_row("qqq")


def test_full_names_are_read_back(tmp_path):
    for kind, extractor, count, reference in [
        ("fd", "inception", 50_000, "train"),
        ("fd", "classifier", 1346, "eval"),
        ("is", "inception", 5000, None),
        ("precision", "dinov2", 300, "train"),
    ]:
        path = written(tmp_path, {metric_name(kind, extractor, count, reference): 1.5})
        (found,) = read_metrics(path)
        expected = "fid" if (kind, extractor) == ("fd", "inception") else kind
        assert (found.metric, found.extractor, found.number, found.reference) == (expected, extractor, count, reference)
    (found,) = read_metrics(written(tmp_path, {"rep_fd/50000_train": 0.5}))  # as logged in training
    assert (found.metric, found.extractor, found.number, found.reference) == ("rep_fd", None, 50_000, "train")


def test_short_names_take_their_settings_from_the_rest_of_the_file(tmp_path):
    content = {"metrics": {"fd": 2.0, "fd_eval": 3.0}, "n": 60, "extractor": "classifier", "protocol": "digits"}
    near, far = read_metrics(written(tmp_path, content))
    assert (near.reference, far.reference) == ("train", "eval")
    assert (near.metric, near.number, near.extractor, near.protocol) == ("fd", 60, "classifier", "digits")
    content["protocol"] = {"name": "adm-256", "version": 1}
    assert read_metrics(written(tmp_path, content))[0].protocol == "adm-256"


def test_files_without_metrics_are_rejected(tmp_path):
    for content in ({}, [1], {"n": 5}, "text"):
        with pytest.raises(UserError, match="metrics"):
            read_metrics(written(tmp_path, content))
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "missing.json")
    with pytest.raises(UserError, match=r"should be the results\.json"):
        read_results(written(tmp_path, {"fd": 1}))


def measured(**settings):
    usual = {"values": (4.0,), "metric": "fid", "extractor": "inception", "number": 50_000, "reference": "val"}
    return Measured(**(usual | {"protocol": None, "path": None} | settings))


def test_every_difference_in_protocol_is_named():
    val = find_row("conditioning/none").protocols["fid"]
    assert measured(protocol="val-50k").differs(val) == []
    assert measured(reference="eval").differs(val) == ["its file names no protocol, so it may not be val-50k"]
    assert measured(number=5000, protocol="val-50k").differs(val) == ["5000 samples, not 50000"]
    differences = measured(number=None, extractor="classifier", reference="train").differs(val)
    assert differences == [
        "an unknown number of samples, not 50000",
        "features of classifier, not inception",
        "reference train, not val",
    ]
    assert measured(protocol="train-50k").differs(val) == ["protocol train-50k, not val-50k"]
    assert measured(metric="is", reference=None, protocol="val-50k").differs(val) == []
    assert measured(protocol="probe").differs(Protocol("probe", "a probe")) == []


def test_a_record_is_compared_with_the_known_settings_of_the_published_protocol():
    val = find_row("conditioning/none").protocols["fid"]
    record = {"name": "val-50k", "quantisation": "truncate", "neighbours": 3, "format": "memory", "labels": "generated"}
    assert measured(protocol="val-50k", record=record).differs(val) == []
    other = record | {"quantisation": "round", "format": "jpeg"}
    assert measured(protocol="val-50k", record=other).differs(val) == [
        "quantisation round and truncate",
        "format jpeg and lossless",
    ]


def test_published_protocols_have_the_settings_of_the_named_ones():
    named = presets()
    published = {
        p.name: p for table in tables().values() for row in table.rows.values() for p in row.protocols.values()
    }
    assert {"adm-256", "val-50k", "cifar10-train", "icgan", "rep-train"} <= published.keys() & named.keys()
    for name in published.keys() & named.keys():
        mine, theirs = named[name], published[name]
        assert theirs.number == mine.number
        assert all(getattr(mine, key) == value for key, value in theirs.settings.items()), name


def test_a_linear_probe_is_published_in_per_cent(tmp_path):
    path = written(tmp_path, {"linear_accuracy/encoder_50k_eval": 0.75, "uniformity/encoder_5k": -3.9})
    found = lines(find_table("encoder-size"), {"encoder-size/b": read_metrics(path)})
    (line,) = (line for line in found if line.row.id == "encoder-size/b" and line.metric == "linear_probe")
    assert line.difference == pytest.approx(75 - 76.7)


def test_difference_is_measured_minus_published(tmp_path):
    table = find_table("imagenet256")
    found = lines(table, {"imagenet256/mage-b-rcg": read_metrics(written(tmp_path, FULL))})
    mine = {line.metric: line for line in found if line.row.id == "imagenet256/mage-b-rcg"}
    assert mine["fid"].difference == pytest.approx(0.02)
    assert mine["is"].difference == pytest.approx(-7.8)
    assert mine["recall"].measured is None
    assert [line.row.id for line in found if line.measured] == ["imagenet256/mage-b-rcg"] * 3
    text = comparison(table, found)
    assert "| mage-b-rcg: MAGE-B, RCG | fid | 3.98 | 4 (n 50000, to train) | +0.02 † |" in text
    assert "† warning: imagenet256/mage-b-rcg fid, imagenet256/mage-b-rcg precision: reference train" in text


def test_the_closest_of_several_references_is_used(tmp_path):
    both = {"fid/inception_50k_train": 1.0, "fid/inception_50k_eval": 2.0}
    found = lines(find_table("conditioning"), {"conditioning/none": read_metrics(written(tmp_path, both))})
    assert found[0].measured.values == (2.0,)


def test_unconfirmed_metrics_are_shown_and_never_compared(tmp_path):
    metrics = read_metrics(written(tmp_path, {"fid/inception_50k_val": 9.0, "is/inception_50k": 20.0}))
    found = lines(find_table("icgan"), {"icgan/none-64-da": metrics, "icgan/none-64": metrics})
    by_id = {(line.row.id, line.metric): line for line in found}
    assert by_id["icgan/none-64-da", "fid"].difference == pytest.approx(-0.2)
    assert by_id["icgan/none-64-da", "is"].difference is None
    assert by_id["icgan/none-64", "fid"].difference is None
    text = comparison(find_table("icgan"), found)
    assert "10.4 (unconfirmed) | 9 (n 50000, to val) | not comparable" in text
    assert not by_id["icgan/none-64", "fid"].to_dict()["confirmed"]


def test_seeds_are_one_metric(tmp_path):
    rows = [{"condition": "none", "seed": seed, "metrics": {"fd": 1.0 + seed}, "n": 60} for seed in range(2)]
    found = lines(find_table("digits"), read_results(written(tmp_path, rows, "results.json")))
    assert found[0].measured.values == (1.0, 2.0)
    assert found[0].difference is None  # digits against ImageNet
    assert "| none | fid | 14.23 | 1.5 ± 0.707 (n 60, to train) | not comparable |" in comparison(
        find_table("digits"), found
    )

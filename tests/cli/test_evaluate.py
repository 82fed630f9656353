"""Metrics for samples from any source, and for several sets of samples in one table."""

import json

import pytest
from PIL import Image

from rcg_lightning.evaluation.sample_readers import open_samples

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


@pytest.fixture
def classifier(toy):
    return ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]


def test_the_same_metrics_from_checkpoint_png_npz_and_store(rcg, toy, classifier, tmp_path):
    checkpoint, folder = toy / "representation" / "last.ckpt", tmp_path / "samples"
    prior = ["--prior", toy / "rdm" / "last.ckpt", "--number", 60, "--batch_size", 17, "--accelerator", "cpu"]
    assert rcg("sample", "--checkpoint", checkpoint, *prior, "--npz", "true", "--out", folder)[0] == 0
    metrics = []
    for i, samples in enumerate([folder, folder / "png", folder / "samples.npz", folder / "store", checkpoint]):
        more = prior if samples == checkpoint else []
        out = tmp_path / f"{i}.json"
        code, output, error = rcg("evaluate", "--samples", samples, *more, *classifier, *REAL, "--out", out)
        assert code == 0, error
        content = json.loads(out.read_text())
        metrics.append(content["metrics"])
        assert content["protocol"]["number"] == 60
        assert content["protocol"]["weights"].startswith("classifier-")
        assert all(name in output for name in metrics[-1])
    assert metrics[0] == metrics[1] == metrics[2] == metrics[3]
    assert metrics[4] == metrics[0]  # to the last digit
    assert {"fd/classifier_60_train", "fd/classifier_60_eval", "is/classifier_60"} <= metrics[0].keys()


@pytest.fixture
def scored(rcg, toy, classifier, tmp_path):
    """Score toy samples; return the written results, stdout and stderr."""

    def run(*words, samples=None, data=REAL):
        out = tmp_path / "metrics.json"
        samples = samples or toy / "none" / "last.ckpt"
        common = ["--samples", samples, *classifier, *data, "--accelerator", "cpu", "--out", out]
        code, output, error = rcg("evaluate", *common, *words)
        assert code == 0, error
        return json.loads(out.read_text()), output, error

    return run


def test_blocks_of_seeds_are_disjoint_and_give_error_bars(scored):
    content, output, _ = scored("--number", 40, "--seeds", 2, "--json")
    assert json.loads(output) == content
    name = "fd/classifier_40_train"
    values = [block[name] for block in content["blocks"]]
    assert values[0] != values[1]
    assert content["metrics"][name] == pytest.approx(sum(values) / 2)
    assert content["deviations"][name] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    second, output, _ = scored("--number", 40, "--first_seed", 40)
    assert second["metrics"][name] == pytest.approx(values[1], rel=1e-6)
    assert f"{name:<40} {second['metrics'][name]:.4f}" in output


def test_a_protocol_is_recorded_and_others_are_not_compared_silently(scored, tmp_path):
    content, _, _ = scored("--protocol", "digits", "--number", 40, "--quantisation", "truncate")
    record = content["protocol"]
    assert record["name"] == "digits with another number, quantisation"
    assert record["reference"]["set"] == "train"
    assert not any("eval" in name for name in content["metrics"])
    (tmp_path / "first.json").write_text(json.dumps(content))
    words = ["--number", 40, "--against", tmp_path / "first.json"]
    again, _, error = scored(*words, "--protocol", "digits", "--quantisation", "truncate")
    assert again["against"]["comparable"]
    assert set(again["against"]["differences"].values()) == {0.0}
    assert "not comparable" not in error
    other, _, _ = scored(*words)
    assert not other["against"]["comparable"]


def test_labels_follow_the_option(scored, raised, toy, classifier):
    found = {}
    for labels in ("generated", "random", "balanced"):
        words = ["--number", 50, "--labels", labels]
        content, _, _ = scored(*words, samples=toy / "class" / "last.ckpt")
        found[labels] = content["metrics"]["fd/classifier_50_train"]
        assert ("class_accuracy/classifier_50" in content["metrics"]) == (labels != "generated")
        assert content["protocol"]["labels"] == labels
    assert found["generated"] == found["random"] != found["balanced"]  # this model samples classes uniformly
    line = raised("evaluate", "--samples", toy / "none" / "last.ckpt", *classifier, *REAL, "--labels", "balanced")
    assert "classes were requested" in line


def test_folders_against_each_other_with_all_metrics(scored, toy):
    one, other = toy / "samples_none", toy / "samples_class"
    content, _, _ = scored("--all", samples=one, data=["--reference_samples", other])
    kinds = {name.partition("/")[0] for name in content["metrics"]}
    assert {"fd", "kd", "is", "precision", "recall", "density", "coverage"} <= kinds
    assert all(name.endswith("_samples") for name in content["metrics"] if name.startswith("fd"))
    same, _, _ = scored(samples=one, data=["--reference_samples", one])
    assert next(value for name, value in same["metrics"].items() if name.startswith("fd/")) < 1e-6
    assert same["protocol"]["format"] == "store"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--protocol", "adm-265"], "no protocol adm-265: did you mean adm-256?"),
        (["--seeds", "7"], "7 equal parts"),
        (["--against", "nothing.json"], "nothing.json cannot be read as a file of metrics"),
        (["--statistics", "nothing.npz"], "one reference only"),
    ],
)
def test_impossible_options_are_rejected(raised, toy, classifier, words, line):
    assert line in raised("evaluate", "--samples", toy / "samples_none", *classifier, *REAL, *words)


def test_jpeg_next_to_png_is_warned_of(rcg, scored, toy, classifier, tmp_path, caplog):
    (tmp_path / "jpeg").mkdir()
    for i, image in enumerate(open_samples(toy / "samples_none" / "store").first(40).numpy()):
        Image.fromarray(image[0]).save(tmp_path / "jpeg" / f"{i:02d}.jpg")
    scored(samples=tmp_path / "jpeg", data=["--reference_samples", toy / "samples_class"])
    assert "formats are mixed (samples jpeg, reference store): JPEG's losses" in caplog.text
    folders = {"class": toy / "samples_class", "jpeg": tmp_path / "jpeg"}
    rows = [{"condition": name, "seed": 0, "samples": str(folder)} for name, folder in folders.items()]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["compare", "--rows", tmp_path / "rows.json", *REAL, *classifier, "--out", tmp_path / "table"]
    rcg(*words)
    assert "class of seed 0 store, jpeg of seed 0 jpeg" in caplog.text


def test_compare_writes_a_table(rcg, raised, toy, classifier, tmp_path):
    rows = [{"condition": name, "seed": 0, "samples": str(toy / f"samples_{name}")} for name in ("none", "class")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["compare", "--rows", tmp_path / "rows.json", *REAL, *classifier, "--out", tmp_path / "table"]
    assert rcg(*words)[0] == 0
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    assert [row["condition"] for row in results[:2]] == ["none", "class"]
    protocol = json.loads((tmp_path / "table" / "protocol.json").read_text())
    assert (protocol["number"], protocol["format"]) == (results[0]["n"], "store")
    for wrong in ([3], [], {"condition": "none"}):
        (tmp_path / "rows.json").write_text(json.dumps(wrong))
        assert "should be a JSON list of rows" in raised(*words)


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ("{tmp}/nothing", "no samples at"),
        ("{tmp}/empty", "holds no images"),
        ("{tmp}/broken", "one.png is broken"),
        ("{toy}/rdm/last.ckpt", "compared with stored ones"),
        ("{toy}/representation/last.ckpt", "give an RDM's checkpoint with --prior"),
        ("{toy}/encoder/last.ckpt", "MoCoV3Stage"),
    ],
)
def test_unusable_samples_are_rejected(raised, toy, classifier, tmp_path, samples, line):
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "one.png").write_text("no image")
    samples = samples.format(tmp=tmp_path, toy=toy)
    assert line in raised("evaluate", "--samples", samples, *classifier, *REAL)


def test_a_reference_is_needed(raised, toy, classifier):
    output = raised("evaluate", "--samples", toy / "samples_none", *classifier)
    assert "either --data or --statistics" in output

"""Figures for samples wherever they lie, and for several sets of them in one table."""

import json

import pytest

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


@pytest.fixture
def classifier(toy):
    return ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]


def test_the_same_figures_from_checkpoint_png_npz_and_store(rcg, toy, classifier, tmp_path):
    checkpoint, folder = toy / "representation" / "last.ckpt", tmp_path / "samples"
    prior = ["--prior", toy / "rdm" / "last.ckpt", "--number", 60, "--accelerator", "cpu"]
    assert rcg("sample", "--checkpoint", checkpoint, *prior, "--npz", "true", "--out", folder)[0] == 0
    figures = []
    for i, samples in enumerate([folder, folder / "png", folder / "samples.npz", folder / "store", checkpoint]):
        more = prior if samples == checkpoint else []
        out = tmp_path / f"{i}.json"
        code, said, error = rcg("evaluate", "--samples", samples, *more, *classifier, *REAL, "--out", out)
        assert code == 0, error
        figures.append(json.loads(out.read_text()))
        assert all(name in said for name in figures[-1])
    assert figures[0] == figures[1] == figures[2] == figures[3]
    assert figures[4] == pytest.approx(figures[0], rel=1e-6)
    assert {"fd/classifier_60_train", "fd/classifier_60_heldout", "is/classifier_60"} <= figures[0].keys()


def test_compare_writes_a_table(rcg, refused, toy, classifier, tmp_path):
    rows = [{"condition": name, "seed": 0, "samples": str(toy / f"samples_{name}")} for name in ("none", "class")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["compare", "--rows", tmp_path / "rows.json", *REAL, *classifier, "--out", tmp_path / "table"]
    assert rcg(*words)[0] == 0
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    assert [row["condition"] for row in results[:2]] == ["none", "class"]
    for wrong in ([3], [], {"condition": "none"}):
        (tmp_path / "rows.json").write_text(json.dumps(wrong))
        assert "should be a JSON list of rows" in refused(*words)


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ("{tmp}/nothing", "no samples at"),
        ("{tmp}/empty", "holds no pictures"),
        ("{tmp}/broken", "one.png is broken"),
        ("{toy}/rdm/last.ckpt", "makes no pictures"),
        ("{toy}/representation/last.ckpt", "give an RDM's checkpoint with --prior"),
        ("{toy}/encoder/last.ckpt", "holds a MoCoV3Stage, where a Generator is needed"),
    ],
)
def test_what_cannot_be_scored(refused, toy, classifier, tmp_path, samples, line):
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "one.png").write_text("no picture")
    samples = samples.format(tmp=tmp_path, toy=toy)
    assert line in refused("evaluate", "--samples", samples, *classifier, *REAL)


def test_something_to_compare_with_is_needed(refused, toy, classifier):
    said = refused("evaluate", "--samples", toy / "samples_none", *classifier)
    assert said == "give what to compare with: either --data or --statistics"

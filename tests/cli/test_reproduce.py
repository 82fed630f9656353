"""Published tables next to metrics measured here."""

import json
import subprocess
import sys

import pytest
import yaml

from rcg_lightning.cli.pipeline import STEP_COMMANDS
from rcg_lightning.config_files import find_config
from rcg_lightning.evaluation.published import tables
from rcg_lightning.pipeline.spec import read_pipeline


def results(seed=0, n=1346):
    """Return a pipeline's results, with rows that the published table lacks."""
    conditions = ["none", "cluster", "class", "class_balanced", "representation", "oracle", "real"]
    metrics = [{"fd": 1.0 - i / 10, "fd_eval": 1.1 - i / 10, "is": 4.0 + i / 10} for i in range(len(conditions))]
    return [{"condition": c, "seed": seed, "metrics": m, "n": n, "seconds": 1.0} for c, m in zip(conditions, metrics)]


def test_all_tables_are_listed(rcg):
    code, output, _ = rcg("reproduce")
    assert code == 0
    assert all(f"\n{name} " in f"\n{output}" for name in tables())
    assert "5 of 15 metrics trainable here   ablation: the RDM's blocks" in output


def test_a_table_without_runs(rcg):
    code, output, _ = rcg("reproduce", "depth")
    assert code == 0
    assert "| 12 | rep_fd | 0.48 | – | – | RCG's paper | imagenet256/rdm --trainer.max_steps 250200 |" in output
    assert "| 12 | fid | 5.07 | – | – | RCG's paper | not trainable here yet |" in output


@pytest.mark.parametrize("name", ["digits/results.json", "results.json"])
def test_digits_from_a_pipelines_results(rcg, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results()))
    out = tmp_path / "out.json"
    code, output, _ = rcg("reproduce", "digits", "--runs", tmp_path, "--out", out)
    assert code == 0
    assert "| none | fid | 14.23 | 1.1 (n 1346, to eval) | not comparable | RCG's paper | pipeline digits |" in output
    assert "| oracle | is | 149 | 4.5 (n 1346) | not comparable |" in output
    assert "warning: another protocol: 1346 samples, not 50000" in output
    found = json.loads(out.read_text())
    assert [line["row"] for line in found[::2]] == [f"digits/{name}" for name in tables()["digits"].rows]
    assert all(line["measured"] and line["difference"] is None for line in found)
    assert rcg("reproduce", "digits", "--runs", path)[1] == output  # the file itself works as well


@pytest.mark.parametrize("kind", ["yaml", "json", "folder"])
def test_rows_by_a_mapping(rcg, tmp_path, kind):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "b.json").write_text(json.dumps({"fid/inception_5k_train": 6.5}))
    content = {"imagenet256/mage-b-rcg": "metrics/b.json", "cifar10/rcg": "metrics/b.json"}
    runs = tmp_path / ("rows.json" if kind == "json" else "published.yaml")
    runs.write_text(json.dumps(content) if kind == "json" else yaml.safe_dump(content))
    code, output, error = rcg("reproduce", "imagenet256", "--runs", tmp_path if kind == "folder" else runs)
    assert code == 0, error
    assert "| 3.98 | 6.5 (n 5000, to train) | +2.52 † |" in output
    assert "† warning: imagenet256/mage-b-rcg fid: 5000 samples, not 50000; reference train" in output
    assert output.count("6.5") == 1


def test_nothing_measured_yet(rcg, tmp_path):
    assert "run `rcg pipeline digits`" in rcg("reproduce", "digits", "--runs", tmp_path)[1]
    assert "name metrics in" in rcg("reproduce", "width", "--runs", tmp_path)[1]


def test_mistakes_are_rejected(raised, tmp_path):
    assert "no published table dept: there are depth" in raised("reproduce", "dept")
    assert "no runs at" in raised("reproduce", "depth", "--runs", tmp_path / "nowhere")
    (tmp_path / "published.yaml").write_text("depth/13: a.json")
    assert "no published row depth/13: did you mean depth/3" in raised("reproduce", "depth", "--runs", tmp_path)
    (tmp_path / "published.yaml").write_text("depth/12: a.json")
    assert "a.json cannot be read" in raised("reproduce", "depth", "--runs", tmp_path)
    (tmp_path / "published.yaml").write_text("[1, 2]")
    assert "should hold lines such as" in raised("reproduce", "depth", "--runs", tmp_path)


def test_configs_of_rows_exist():
    for table in tables().values():
        if table.pipeline:
            parsed = read_pipeline(find_config(table.pipeline, "pipeline"), STEP_COMMANDS)
            assert set(table.rows) <= set(parsed.rows)
        for config in {row.config for row in table.rows.values() if row.config}:
            assert find_config(config).is_file()


def test_it_needs_no_torch():
    line = "import sys; from rcg_lightning.cli.main import main; assert main(['reproduce', 'guidance']) == 0; "
    line += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", line], check=True, capture_output=True)


def test_results_that_cannot_be_written_are_rejected_before_the_work(raised, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a folder: give the path of a file" in raised("reproduce", "depth", "--out", tmp_path)
    assert "file is not a folder" in raised("reproduce", "depth", "--out", tmp_path / "file" / "out.json")
    words = ["bundle", "--generator", tmp_path / "none.ckpt", "--out"]
    assert "file is not a folder" in raised(*words, tmp_path / "file" / "bundle")
    assert (tmp_path / "file").read_text() == "mine"

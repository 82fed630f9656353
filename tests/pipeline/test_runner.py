"""A pipeline at toy size: all stages, interrupted, changed, damaged, and with mistakes in its file."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers import rcg_process
from rcg_lightning.artifacts import locked
from rcg_lightning.cli.main import main
from rcg_lightning.cli.pipeline import STEP_COMMANDS
from rcg_lightning.errors import UserError
from rcg_lightning.pipeline.records import write_record
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import Pipeline, Step, read_pipeline

TOY = Path(__file__).parents[1] / "helpers" / "toy.yaml"


@pytest.fixture
def toy_run(finished):
    """Make a Run over the finished folder from a pipeline file, by default the toy's, with steps changed."""

    def make(tmp_path, **changed):
        content = yaml.safe_load(TOY.read_text())
        for name, run in changed.items():
            content["steps"][name]["run"] = run(content["steps"][name]["run"])
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return Run(read_pipeline(path, STEP_COMMANDS), finished / "toy", [0])

    return make


def outdated(run):
    return {step.name for step, seed in run.todo() if not run.is_done(step, seed)}


def contents(folder):
    """Return the SHA-256 of every store's files and the tensors of every checkpoint below a folder."""
    import torch

    stores = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix == ".npy" or path.name == "manifest.json" or path.suffix == ".safetensors"
    }
    stores = {name: value for name, value in stores.items() if "reference" not in name}
    weights = {
        str(path.relative_to(folder)): torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(folder.rglob("last.ckpt"))
    }
    return stores, weights


def test_all_stages_at_toy_size(finished):
    rows = json.loads((finished / "toy" / "results.json").read_text())
    conditions = [row["condition"] for row in rows]
    assert conditions[:4] == ["none", "cluster", "class", "representation"]
    assert len(conditions) == 6  # with two rows of real images
    for row in rows:
        assert row["seed"] == 0
        assert row["n"] == 128
        assert row["seconds"] >= 0
        names = {"fd", "fd_eval", "is", "precision", "recall", "copy_rate", "nearest"}
        assert names <= row["metrics"].keys()
        assert all(isinstance(value, float) for value in row["metrics"].values())
    representation = rows[3]["seconds"]
    assert representation > rows[0]["seconds"]  # encoder, stores and RDM belong to its cost
    assert (finished / "toy" / "results.md").read_text().count("\n| ") >= 6
    assert (finished / "toy" / "grid.png").is_file()


def test_a_row_costs_what_its_steps_take_shared_or_not(tmp_path):
    """With one seed all steps of `rcg train --compare` are shared."""
    steps = {
        "encoder": Step("encoder", "principal", shared=True),
        "generator": Step("generator", "fit --config {encoder}", shared=True),
        "samples": Step("samples", "sample --checkpoint {generator} {encoder}"),
    }
    run = Run(Pipeline("run", steps, "compare", {"representation": "samples"}), tmp_path, [0])
    for seconds, step in zip((1.0, 20.0, 300.0), steps.values()):
        run.record_path(step, 0).parent.mkdir(exist_ok=True)
        write_record(run.record_path(step, 0), {"key": "k", "seconds": seconds, "files": {}})
    assert [row["seconds"] for row in run.rows()] == [321.0]


def wait_for(path, process, seconds=60):
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.is_alive(), f"the run ended before it wrote {path.name}"
        assert time.monotonic() < until, f"{path.name} did not appear"
        time.sleep(0.002)


def test_a_killed_run_continues_to_the_same_bits(finished, tmp_path):
    import torch

    run = tmp_path / "toy" / "seed0"
    moments = [
        (run / "store" / "000000.json", signal.SIGKILL, -signal.SIGKILL),  # extraction, after one shard of three
        (run / "rdm" / "last.ckpt", signal.SIGKILL, -signal.SIGKILL),  # RDM training
        (run / "none" / "config.yaml", signal.SIGINT, 130),  # the keyboard, in another training
        (run / ".samples_class.json", signal.SIGKILL, -signal.SIGKILL),  # sampling
    ]
    for path, how, code in moments:
        process = rcg_process.start(["pipeline", TOY, "--root", tmp_path], tmp_path)
        wait_for(path, process)
        os.kill(process.pid, how)
        assert rcg_process.finish(process) == code
        record = path if path.suffix == ".json" and path.parent == run else run / f".{path.parent.name}.json"
        assert json.loads(record.read_text())["seconds"] is None
        if path.parent.name == "rdm":
            assert torch.load(path, weights_only=True)["global_step"] < 150
    assert rcg_process.finish(rcg_process.start(["pipeline", TOY, "--root", tmp_path], tmp_path)) == 0
    (stores, weights), (their_stores, their_weights) = contents(tmp_path / "toy"), contents(finished / "toy")
    assert stores == their_stores
    assert weights.keys() == their_weights.keys()
    for path, tensors in weights.items():
        assert tensors.keys() == their_weights[path].keys()
        wrong = [name for name, tensor in tensors.items() if not torch.equal(tensor, their_weights[path][name])]
        assert not wrong, f"{path}: {wrong[:3]}"
    mine, theirs = (json.loads((root / "toy" / "results.json").read_text()) for root in (tmp_path, finished))
    assert [row["metrics"] for row in mine] == [row["metrics"] for row in theirs]


def test_a_finished_pipeline_does_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    argv = ["pipeline", str(TOY), "--root", str(finished)]
    line = f"import sys; from rcg_lightning.cli.main import main; main({argv}); "
    start = time.monotonic()
    output = subprocess.run(
        [sys.executable, "-c", line + "assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    ).stdout
    assert time.monotonic() - start < 15
    assert output.count("up to date") == 15
    assert "| representation | 128 |" in output
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_steps_that_depend_on_a_change_run_again(toy_run, tmp_path):
    assert outdated(toy_run(tmp_path)) == set()
    longer = lambda run: run.replace("150", "160")  # noqa: E731
    assert outdated(toy_run(tmp_path, rdm=longer)) == {"rdm", "samples_representation"}
    more = lambda run: run.replace("--count 4", "--count 5")  # noqa: E731
    changed = {"clusters", "eval_clusters", "cluster", "samples_cluster"}
    assert outdated(toy_run(tmp_path, clusters=more)) == changed


def test_a_changed_config_or_fragment_changes_the_key(tmp_path):
    fragment, pipeline = tmp_path / "network.yaml", tmp_path / "pipeline.yaml"
    (tmp_path / "mine.yaml").write_text("model: {init_args: {network: network.yaml}}\n")
    (tmp_path / "other.yaml").write_text("seed_everything: 1\n")
    steps = {"one": {"run": f"fit --config {tmp_path}/mine.yaml"}}
    steps["two"] = {"run": f"fit --config {tmp_path}/other.yaml --data.stores [{{one}}]"}
    steps["apart"] = {"run": f"fit --config={tmp_path}/other.yaml"}
    pipeline.write_text(yaml.safe_dump({"steps": steps}, sort_keys=False))

    def keys(width):
        fragment.write_text(f"width: {width}\n")
        run = Run(read_pipeline(pipeline, STEP_COMMANDS), tmp_path / "runs", [0])
        return [run.key(step, 0) for step in run.pipeline.steps.values()]

    first, remarked, changed = keys("3"), keys("3  # a remark"), keys("4")
    assert remarked == first
    assert [old == new for old, new in zip(first, changed)] == [False, False, True]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_artifact_is_outdated(toy_run, tmp_path, damage):
    run = toy_run(tmp_path)
    path = run.root / "seed0" / "clusters" / "000000.cluster.npy"
    content = path.read_bytes()
    try:
        path.unlink() if damage == "missing" else path.write_bytes(content[:-8])
        assert outdated(run) == {"clusters"}
    finally:
        path.write_bytes(content)


def small_pipeline(folder, dim=4, more=""):
    path = folder / "small.yaml"
    path.write_text(
        f"""
name: small
steps:
  components:
    run: principal --data.source Digits --dim {dim}
  store:
    run: extract --config digits/data --encoder TrainedEncoder --encoder.folder {{components}}
  clusters:
    run: cluster --store {{store}} --count 3 --seed {{seed}}
{more}"""
    )
    return ["pipeline", str(path), "--root", str(folder / "runs")]


def test_old_results_are_set_aside_and_damaged_ones_replaced(tmp_path, capsys):
    seed = tmp_path / "runs" / "small" / "seed0"
    assert main(small_pipeline(tmp_path)) == 0
    old = (seed / "components" / "weights.safetensors").read_bytes()
    (seed / "clusters" / "000000.cluster.npy").unlink()
    capsys.readouterr()
    assert main(small_pipeline(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "store, seed 0: up to date" in output
    assert "files are missing or truncated" in output
    assert main(small_pipeline(tmp_path, dim=5)) == 0
    aside = [path for path in seed.iterdir() if path.name.startswith("components.until-")]
    assert len(aside) == 1
    assert (aside[0] / "weights.safetensors").read_bytes() == old
    assert len(list(seed.glob("store.until-*"))) == 1
    assert len(list(seed.glob("clusters.until-*"))) == 2


def test_a_failing_step_is_named_and_leaves_the_others(tmp_path, capsys):
    argv = small_pipeline(tmp_path, more="  wrong:\n    run: cluster --store {store} --count 5000\n")
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert error == "rcg pipeline: step wrong: 5000 clusters were asked for of 1346 points: choose fewer clusters"
    assert main(argv) == 2
    assert capsys.readouterr().out.count("up to date") == 3


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert main([*small_pipeline(tmp_path), "--dry_run", "true"]) == 0
    assert not (tmp_path / "runs").exists()
    assert "rcg cluster --store" in capsys.readouterr().out


def test_arguments_are_filled_in_and_change_the_key(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("arguments: {root: here}\nsteps: {a: {run: 'fit --config digits/encoder --data.seed {root}'}}\n")
    usual, other = (Run(read_pipeline(path, STEP_COMMANDS, given), tmp_path, [0]) for given in ({}, {"root": "a b"}))
    step = other.pipeline.steps["a"]
    assert "a b" in other.words(step, 0)
    assert usual.key(usual.pipeline.steps["a"], 0) != other.key(step, 0)
    assert main(["pipeline", str(path), "--set.rot", "x"]) == 2
    assert "no argument rot: did you mean root?" in capsys.readouterr().err


def test_one_run_at_a_time(tmp_path, capsys):
    with locked(tmp_path / "runs" / "small" / ".lock", "it is free"):
        assert main(small_pipeline(tmp_path)) == 2
    assert "another rcg pipeline is running" in capsys.readouterr().err


def test_seeds_repeat_all_but_shared_steps():
    run = Run(read_pipeline(TOY, STEP_COMMANDS), Path("runs"), [0, 1])
    todo = [(step.name, seed) for step, seed in run.todo()]
    assert todo[0] == ("classifier", 0)
    assert len(todo) == 1 + 2 * 14
    words = {seed: run.words(run.pipeline.steps["rdm"], seed) for seed in (0, 1)}
    step_seeds = [words[seed][words[seed].index("--seed_everything") + 1] for seed in (0, 1)]
    assert step_seeds == ["650229823", "901282283"]  # the published models were trained with these
    assert run.words(run.pipeline.steps["classifier"], 0) == run.words(run.pipeline.steps["classifier"], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: [", "line 1: no valid YAML"),
        ("3", "should hold arguments, name, steps, table"),
        ("stesp: {}", "unknown key stesp: did you mean steps?"),
        ("steps:", "steps should be names"),
        ("steps: {a: fit}", "step a should hold devices, launcher, run, shared"),
        ("steps: {a: {rnu: fit}}", "step a: unknown key rnu: did you mean run?"),
        ("steps: {a: {shared: true}}", "step a lacks run"),
        ("steps: {a: {run: ''}}", "step a: run should be a command"),
        ("steps: {a: {run: fitt --config x}}", "cannot run fitt: did you mean fit?"),
        ("steps: {a: {run: fit, devices: 0}}", "devices a number of at least 1"),
        ("steps: {seed: {run: fit}}", "a step's name is one word"),
        ("steps: {seed0: {run: fit}}", "a step's name is one word"),
        ("steps: {../a: {run: fit}}", "a step's name is one word"),
        ("steps: {/tmp/a: {run: fit}}", "a step's name is one word"),
        (f"steps: {{{'a' * 200}: {{run: fit}}}}", "a step's name is one word"),
        ("steps: {a: {run: 'fit \"'}}", "run cannot be split into words (No closing quotation)"),
        ("steps: {a: {run: fit, launcher: 3}}", "step a: launcher should be a command"),
        ("steps: {a: {run: fit}}\ntable: {run: 3, rows: {x: a}}", "table: run should be a command"),
        *(
            (f"name: {name}\nsteps: {{a: {{run: fit}}}}", "name should be that of a folder")
            for name in ("../x", "/tmp/x", "''", ".", "..", "a/b", "[]", ".hidden", '"a\\0b"', "null")
        ),
        (
            "steps: {store: {run: fit}, b: {run: 'fit {stroe}'}}",
            "{stroe}, which is not an earlier step: did you mean store?",
        ),
        ("steps: {b: {run: 'fit {c}'}, c: {run: fit}}", "step b reads {c}, which is not an earlier step"),
        (
            "steps: {a: {run: fit}, b: {run: 'fit {a}', shared: true}}",
            "so it can only read shared steps, which a is not",
        ),
        ("steps: {a: {run: fit}}\ntable: {run: compare, rows: {x: bb}}", "the table reads bb, which is not a step"),
        ("steps: {a: {run: fit}}\ntable: {rows: {x: a}}", "table lacks run"),
    ],
)
def test_mistakes_in_a_pipeline_file_are_rejected(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_pipeline(path, STEP_COMMANDS)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)

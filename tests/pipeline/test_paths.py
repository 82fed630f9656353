"""Folders and files whose names mean something to a shell or to YAML, through whole commands and pipelines."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from rcg_lightning.cli.main import main
from rcg_lightning.cli.parsing import prepared
from rcg_lightning.cli.pipeline import STEP_COMMANDS
from rcg_lightning.data.store import Store
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import read_pipeline

NASTY = "a b, [x] {seed} {a}: #c='d' \"e\" $HOME *é & -- ü\n\\f"
TINY = "--model.sampler.steps 2 --trainer.max_steps 2 --data.batch_size 4 --trainer.accelerator cpu"
DATA = (
    "--data.source FlatFolder --data.source.root {root} --data.source.channels 1 --data.transform CenterCrop "
    "--data.transform.size 8"
)
ENCODER = "--encoder TrainedEncoder --encoder.folder {encoder} --accelerator cpu"
EXTRACTOR = "--extractor EncoderExtractor --extractor.encoder TrainedEncoder --extractor.encoder.folder {encoder}"
STEPS = {
    "encoder": f"principal {DATA} --dim 4",
    "store": f"extract {DATA} {ENCODER}",
    "eval_store": f"extract {DATA} --split eval {ENCODER}",
    "clusters": "cluster --store {store} --count 2 --seed {seed}",
    "eval_clusters": "cluster --store {eval_store} --centres {clusters}",
    "rdm": f"fit --config digits/rdm {DATA} {TINY} --data.stores [{{store}}] --data.eval_stores=[{{eval_store}}]",
    "generator": f"fit --config digits/generator {DATA} {TINY} --model.condition RepresentationCondition "
    "--data.stores [{store},{clusters}] --data.eval_stores [{eval_store},{eval_clusters}]",
    "samples": "sample --checkpoint {generator}/last.ckpt --prior {rdm}/last.ckpt --number 6 --accelerator cpu",
}
TABLE = f"compare {DATA} {EXTRACTOR}"


def pipeline_file(folder, steps, **more):
    content = {"name": "p", "arguments": {"root": "images"}, "steps": {n: {"run": run} for n, run in steps.items()}}
    path = folder / "p.yaml"
    path.write_text(yaml.safe_dump(content | more, sort_keys=False))
    return path


def images(folder, count=24):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d} {{x}}, #'.png")
    return folder


def test_a_path_of_any_characters_goes_through_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    root, given = tmp_path / NASTY, images(tmp_path / f"images {NASTY}")
    path = pipeline_file(tmp_path, STEPS, table={"run": TABLE, "rows": {"all": "samples"}})
    words = ["pipeline", str(path), "--root", str(root), "--set.root", str(given)]
    assert main(words) == 0, capsys.readouterr().err[-2000:]
    run = root / "p" / "seed0"
    assert Store.open(run / "store").size + Store.open(run / "eval_store").size == 24
    assert Store.open(run / "samples" / "store").size == 6
    assert (root / "p" / "results.json").is_file()
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("up to date") == len(STEPS)
    # the saved config is a config again, and single commands take the same paths
    assert main(["fit", "--config", str(run / "generator" / "config.yaml"), "--trainer.max_steps", "3"]) == 0
    png = tmp_path / f"png {NASTY}"
    extractor = ["--extractor", "EncoderExtractor", "--extractor.encoder", "TrainedEncoder"]
    extractor += ["--extractor.encoder.folder", str(run / "encoder")]
    generated = ["--checkpoint", str(run / "generator" / "last.ckpt"), "--prior", str(run / "rdm" / "last.ckpt")]
    assert main(["sample", *generated, "--number", "6", "--accelerator", "cpu", "--out", str(png)]) == 0
    scored = ["--samples", str(png / "png"), "--reference_samples", str(png), "--out", str(png / "metrics.json")]
    assert main(["evaluate", *scored, *extractor, "--accelerator", "cpu"]) == 0, capsys.readouterr().err[-2000:]


@pytest.mark.parametrize("name", [NASTY, "/data/[1]", "/data/a: b", "{seed}", "a b", "x,y", "[x]", "&a"])
def test_values_are_neither_split_nor_read_again(tmp_path, name):
    steps = {"one": "principal --data {root}", "two": "fit --a [{one}] --b=[{one},{root}] --c {root} --d [1,2] x"}
    pipeline = read_pipeline(pipeline_file(tmp_path, steps), STEP_COMMANDS, {"root": name})
    run = Run(pipeline, tmp_path / NASTY, [0])
    one = str(run.folder(pipeline.steps["one"], 0))
    assert run.words(pipeline.steps["one"], 0)[:3] == ["principal", "--data", name]
    words = run.words(pipeline.steps["two"], 0)
    assert yaml.safe_load(words[2]) == [one]
    assert words[3].startswith("--b=")
    assert yaml.safe_load(words[3].removeprefix("--b=")) == [one, name]
    assert words[4:9] == ["--c", name, "--d", "[1,2]", "x"]
    assert pipeline.steps["two"].upstream == ["one"]


def test_ordinary_paths_stay_readable(tmp_path):
    pipeline = read_pipeline(pipeline_file(tmp_path, {"a": "principal", "b": "fit --s [{a}]"}), STEP_COMMANDS)
    assert Run(pipeline, tmp_path / "runs", [0]).words(pipeline.steps["b"], 0)[2] == f"[{tmp_path}/runs/seed0/a]"


def test_a_file_with_commas_is_one_item_of_a_list(tmp_path):
    path = tmp_path / "a,b [c].png"
    path.touch()
    words = prepared(["--images", str(path), "--number", "1,2"], ["images", "number"])
    assert json.loads(words[0].removeprefix("--images=")) == [str(path)]
    assert words[1] == "--number=[1, 2]"

"""`rcg train` on a small folder, whole: a plan, a run, the same again, longer, and with new images."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rcg_lightning.cli.main import main


def save_images(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    return save_images(tmp_path / "images", range(60))


@pytest.fixture
def rcg_train(images, tmp_path, capsys):
    """Run the command on the folder; return its exit code, standard output and error."""

    def run(*options, data=images, out="run"):
        words = ["train", str(data), "--size", "8", "--accelerator", "cpu", "--out", str(tmp_path / out)]
        code = main([*words, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def steps_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_a_folder_becomes_images_and_the_same_command_continues(rcg_train, images, tmp_path):
    run = tmp_path / "run"
    code, out, err = rcg_train("--steps", 30, "--dry-run")  # of which nothing has been trained
    assert code == 0, err
    assert "60 images" in out
    assert "principal" in out  # too few to train an encoder on
    assert not (run / "generator").exists()

    code, out, err = rcg_train("--steps", 10)
    assert code == 0, err
    parts = json.loads((run / "plan.json").read_text())["parts"]
    assert (steps_of(run / parts["generator"]), steps_of(run / parts["prior"])) == (10, 10)
    assert (run / "samples" / "grid.png").is_file()
    assert (run / "contact_sheet.png").is_file()
    assert "60 images" in (run / "report.html").read_text()
    assert list((run / "generator" / "grids").glob("*.png"))
    assert steps_of(run / "generator" / "undecayed.ckpt") == 8

    code, out, err = rcg_train("--steps", 10)
    assert code == 0, err
    assert out.count("up to date") == 8

    code, out, err = rcg_train("--steps", 20)
    assert code == 0, err
    assert out.count("up to date") == 3  # encoder and stores
    assert "trained for 10 steps, continues to 20" in out
    assert steps_of(run / "generator" / "last.ckpt") == 20
    assert steps_of(run / "generator" / "shorter.ckpt") == 10
    assert not list(run.glob("generator.until*"))
    assert list(run.glob("samples.until*"))

    save_images(images, range(60, 80))
    code, out, err = rcg_train("--steps", 20)
    assert code == 0, err
    assert "60 then, 80 now" in out
    assert list(run.glob("store.until*"))
    assert steps_of(run / "generator" / "last.ckpt") == 20

    other = save_images(tmp_path / "other", range(100, 160))
    code, _, err = rcg_train("--steps", 10, data=other)
    assert code == 2
    assert "holds the run of" in err


def test_the_configs_of_a_plan_are_those_of_rcg_fit(rcg_train, tmp_path):
    code, _, err = rcg_train("--steps", 10, "--dry-run", "--condition", "none")
    assert code == 0, err
    config = tmp_path / "run" / "configs" / "generator.yaml"
    assert yaml.safe_load(config.read_text())["trainer"]["max_steps"] == 10
    words = ["--trainer.default_root_dir", str(tmp_path / "fit"), "--trainer.max_steps", "1"]
    assert main(["fit", "--config", str(config), *words]) == 0


def test_folders_as_classes(rcg_train, tmp_path):
    labelled = tmp_path / "labelled"
    for number, name in enumerate(("cat", "dog")):
        save_images(labelled / name, range(40 * number, 40 * number + 40))
    code, _, err = rcg_train("--steps", 2, "--condition", "class", data=labelled)
    assert code == 0, err
    assert (tmp_path / "run" / "samples" / "grid.png").is_file()
    assert not (tmp_path / "run" / "rdm").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "ten"), "--budget should be a duration such as 90s, 10m, 1h or 1h30m, not 'ten'"),
        (("--budget", "1s"), "--budget 1 s leaves no step for the"),
        (("--budget", "1m", "--steps", "5"), "give --budget or --steps, not both"),
        (("--encoder", "vit_nonsense"), "timm has no model 'vit_nonsense'"),
        (("--encoder", "runs/nothing"), "--encoder runs/nothing is no network folder"),
        (("--condition", "class"), "--condition class needs labels"),
        (("--generator", "gan"), "generator"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(options, message, rcg_train, tmp_path):
    code, _, err = rcg_train(*options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "plan.json").exists()


def test_folders_that_do_not_fit(rcg_train, images, tmp_path):
    assert "lies in the folder of the images" in rcg_train("--steps", 1, out="images/run")[2]
    assert "no folder" in rcg_train(data=tmp_path / "nothing")[2]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images in" in rcg_train(data=empty)[2]
    few = save_images(tmp_path / "few", range(20))
    assert "holds 20 images, too few" in rcg_train(data=few)[2]

"""fit, validate, test and predict from the command line: help, configs, checkpoints, bad data."""

import errno
import os
from pathlib import Path

import pytest
import torch
import yaml

from rcg_lightning.artifacts import locked
from rcg_lightning.cli.stages import default_folder
from rcg_lightning.data.store import Store
from rcg_lightning.run_folder import LAST

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SMALL = ["--data.source.limit=256", "--data.batch_size=32", "--model.denoiser.network.width=32"]
GENERATOR = ["--config", "digits/generator", *SMALL, "--model.sampler.steps=5", *QUIET]


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_is_short_at_the_top_and_complete_below(rcg, command):
    code, output, _ = rcg(command, "--help")
    assert code == 0
    top, _, below = output.partition("\noptions:\n")
    assert len(top.splitlines()) < 14
    assert f"\n  rcg {command} --config" in top
    for option in ("--trainer.max_steps", "--model CONFIG", "--data.help", "--ckpt_path", "--print_config"):
        assert option in below
    assert "lr_scheduler" not in below


def test_classes_explain_themselves_by_short_names(rcg):
    code, output, _ = rcg("fit", "--model.help", "DiffusionStage")
    assert code == 0
    assert "--model.stratified" in output
    assert "spread the timesteps" in output


def test_a_printed_config_is_readable_and_reproduces_itself(rcg, tmp_path):
    code, output, error = rcg("fit", *GENERATOR, "--print_config")
    assert code == 0
    assert error == ""
    assert "null" not in output
    assert len(output.splitlines()) < 120
    path = tmp_path / "printed.yaml"
    path.write_text(output)
    assert yaml.safe_load(output)["model"]["init_args"]["denoiser"]["init_args"]["network"]["init_args"]["width"] == 32
    assert rcg("fit", "--config", path, "--print_config")[1] == output


def test_training_again_continues_or_leaves_the_earlier_run(rcg, tmp_path, caplog):
    folder = tmp_path / "run"
    fit = ["fit", *GENERATOR, f"--trainer.default_root_dir={folder}"]
    code, output, error = rcg(*fit, "--trainer.max_steps=2")
    assert code == 0
    assert error == ""  # no warnings, no advertisements
    assert output == f"{folder / 'last.ckpt'}: trained\n"
    again = ["fit", "--config", folder / "config.yaml"]
    assert rcg(*again, "--trainer.max_steps=3", "--ckpt_path", "last")[0] == 0
    assert step_of(folder / "last.ckpt") == 3
    assert rcg(*again, "--trainer.max_steps=1")[0] == 0
    assert f"{folder} held another run, which is now in version_0" in caplog.messages
    assert step_of(folder / "last.ckpt") == 1
    assert step_of(folder / "version_0" / "last.ckpt") == 3
    configs = [yaml.safe_load((path / "config.yaml").read_text()) for path in (folder, folder / "version_0")]
    assert [config["trainer"]["max_steps"] for config in configs] == [1, 3]
    code, output, _ = rcg(*again, "--trainer.fast_dev_run=true")
    assert code == 0
    assert "trained" not in output
    assert step_of(folder / "last.ckpt") == 1


def test_one_training_at_a_time_in_a_folder(raised, tmp_path):
    fit = ["fit", *GENERATOR, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1"]
    with locked(tmp_path / ".lock", "it is free"):
        assert f"another rcg fit is running in {tmp_path}" in raised(*fit)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_each_config_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("")
    assert default_folder(["--config", "digits/rdm"]) == Path("runs/digits-rdm")
    assert default_folder(["--config=digits/rdm", "-c", "small.yaml"]) == Path("runs/digits-rdm-small")
    assert default_folder(["--model", "MoCoV3Stage"]) == Path("runs/MoCoV3Stage")
    assert default_folder([]) == Path("runs/latest")


def test_a_full_disk_leaves_the_previous_checkpoint(rcg, raised, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fit = ["fit", *GENERATOR, f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
    assert rcg(*fit, "--trainer.max_steps=1")[0] == 0

    flush = os.fsync

    def full(descriptor):
        if LAST in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    output = raised(*fit, "--trainer.max_steps=2", "--ckpt_path", "last")
    assert "last.ckpt cannot be written (No space left on device)" in output
    assert step_of(folder / "last.ckpt") == 1
    assert not list(folder.glob(".*draft"))


def test_validate_and_test_measure_the_same(rcg, toy):
    words = [*GENERATOR, "--ckpt_path", toy / "none" / "last.ckpt", "--trainer.logger=false"]
    output = [rcg(command, *words)[1] for command in ("validate", "test")]
    assert "val/loss" in output[0]
    assert output[0] == output[1]


def test_predict_writes_a_store(rcg, toy, tmp_path):
    root = [f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    code, output, error = rcg("predict", *GENERATOR, "--ckpt_path", toy / "none" / "last.ckpt", *root)
    assert code == 0, error
    assert "image of 451 evaluation images" in output
    assert Store.open(tmp_path / "predictions").columns["image"]["shape"] == [8, 8, 1]
    classifier = ["--config", "digits/classifier", *QUIET, "--ckpt_path", toy / "classifier" / "last.ckpt"]
    assert rcg("predict", *classifier, f"--trainer.default_root_dir={tmp_path / 'c'}", "--trainer.logger=false")[0] == 0
    assert Store.open(tmp_path / "c" / "predictions").columns["label"]["shape"] == []


@pytest.mark.parametrize(
    ("checkpoint", "line"),
    [
        ("{toy}/encoder/last.ckpt", "holds a MoCoV3Stage, the config a DiffusionStage"),
        ("{toy}/class/last.ckpt", "other networks"),
        ("{toy}/rdm/last.ckpt", "other networks"),
        ("{toy}/nothing.ckpt", "nothing.ckpt"),
        ("{toy}/joint.yaml", "joint.yaml"),
    ],
)
def test_a_wrong_checkpoint_is_rejected(raised, toy, tmp_path, checkpoint, line):
    words = [*GENERATOR, f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    assert line in raised("fit", *words, "--ckpt_path", checkpoint.format(toy=toy))
    assert not (tmp_path / "config.yaml").exists()


FLAT = ["--data.source", "FlatFolder", "--data.source.root", "{tmp}/flat", "--data.source.channels=1"]
PRINCIPAL = "--data.stores=[{tmp}/other]"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--model.condition", "ClassCondition", *FLAT], "labels are needed"),
        (["--model.condition", "ClusterCondition"], "['cluster'] of the train images is needed"),
        (["--model.condition", "RepresentationCondition"], "rcg extract"),
        (["--model.condition", "RepresentationCondition", "--data.stores=[{tmp}/no]"], "no store at"),
        (["--model.condition", "RepresentationCondition", "--data.source.limit=200", "--data.stores=[{toy}/store]"],
         "its dataset is"),
        (["--model.condition", "RepresentationCondition", "--data.stores=[{toy}/store]",
          "--data.eval_stores=[{tmp}/other]"], "its representation is"),
        (["--data.source", "FlatFolder", "--data.source.root", "{tmp}/empty"], "no images in"),
        (["--data.source", "FlatFolder", "--data.source.root", "{tmp}/gone"], "no folder of images at"),
        (["--data.source", "MNIST", "--data.source.root", "{tmp}", "--data.source.download=false"], "MNIST is missing"),
    ],
)  # fmt: skip
def test_unusable_data_are_rejected(rcg, raised, toy, tmp_path, argv, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    for path in list((toy / "samples_none").glob("*.png")) * 3:
        for i in range(9):
            (tmp_path / "flat" / f"{i}.png").write_bytes(path.read_bytes())
    if any("other" in word for word in argv):
        data = ["--data.source", "Digits", "--data.source.limit=256"]
        assert rcg("principal", *data, "--dim", 4, "--out", tmp_path / "pca")[0] == 0
        encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", tmp_path / "pca", "--split", "eval"]
        assert rcg("extract", *data, *encoder, "--out", tmp_path / "other")[0] == 0
    words = [word.format(tmp=tmp_path, toy=toy) for word in argv]
    limit = [] if "--data.source" in words else ["--data.source.limit=256"]
    run = ["fit", "--config", "digits/generator", *limit, *QUIET, f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert line in raised(*run, *words)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_patch_that_does_not_fit(raised, tmp_path):
    words = [
        "fit",
        "--config",
        "digits/dit",
        *QUIET,
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=false",
    ]
    assert "patch 3 does not divide 8x8" in raised(*words, "--model.denoiser.network.patch=3")


def test_a_folder_of_one_broken_image(raised, toy, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_text("no image")
    source = ["--data.source", "FlatFolder", "--data.source.root", tmp_path / "images", "--data.source.channels=1"]
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    words = ["extract", *source, *encoder, "--out", tmp_path / "store"]
    assert "too few images" in raised(*words)
    whole = ["--data.source.eval_share=0", "--data.transform", "CenterCrop", "--data.transform.size=8"]
    assert "none of the 1 images in" in raised(*words, *whole)
    assert not (tmp_path / "store" / "manifest.json").exists()

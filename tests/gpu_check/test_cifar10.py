"""The commands that train on CIFAR-10 itself, which a rehearsal replaces: their options exist and take effect."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from rcg_lightning.cli.main import main
from rcg_lightning.config import construct
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_folders import ImageFolder
from rcg_lightning.gpu_check.cifar10 import CIFAR10Check
from rcg_lightning.gpu_check.target import Target


def commands_of(check_folder, images):
    seen = []

    def record(*words):
        seen.append(list(map(str, words)))
        raise LookupError("recorded only")

    check = CIFAR10Check(Target(torch.device("cpu")), check_folder, Path("out"), record, 0.35, images)
    for trial in check.trials():
        with pytest.raises(LookupError):
            trial.run()
    return seen


@pytest.mark.slow
def test_every_training_is_a_command_that_can_be_parsed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / split / "cat" / "0.png")
    (tmp_path / "run").mkdir()
    trainings = [words for words in commands_of(tmp_path / "run", tmp_path) if words[0] == "fit"]
    assert len(trainings) == 6
    printed = []
    for words in {words[2]: words for words in trainings}.values():  # one of each config
        assert main([*words, "--print_config"]) == 0
        printed.append(capsys.readouterr().out)
        config = yaml.safe_load(printed[-1])
        assert config["trainer"]["max_time"] in ("00:00:00:21", "00:00:00:10")
        assert config["data"]["init_args"]["source"]["class_path"].endswith("ImageFolder")
        data = ImageDataModule(ImageFolder(tmp_path), construct(config["data"]["init_args"]["transform"]))
        assert data.spec.image == (3, 32, 32)
        optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
        assert optimizer["lr_schedule"]["class_path"].endswith("ConstantLR")
    assert any("size: S/4" in text for text in printed)

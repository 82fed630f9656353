"""A user's own classes: found next to the config, or named with --plugin."""

import sys

import pytest

from rcg_lightning.cli.main import main
from rcg_lightning.cli.plugins import find_own_modules, load_plugin, split_plugins
from rcg_lightning.errors import UserError

OWN = """
from lightning.pytorch.callbacks import Callback
from torch import nn
from rcg_lightning.core.schedule import CosineSchedule

class Report(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("report: fit starts")

class OwnSchedule(CosineSchedule):
    pass

class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
"""
TINY = [
    *("--config", "digits/generator", "--data.source.limit", "64", "--data.batch_size", "32"),
    *("--model.denoiser.network.width", "8", "--model.sampler.steps", "2", "--trainer.max_steps", "1"),
]


@pytest.fixture(autouse=True)
def own_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


def test_the_option_may_be_given_several_times_and_anywhere():
    assert split_plugins(["--plugin", "a", "fit", "--plugin=b.py", "--x", "1"]) == (["a", "b.py"], ["fit", "--x", "1"])
    for words in (["fit", "--plugin"], ["fit", "--plugin", "--x"], ["fit", "--plugin="]):
        with pytest.raises(UserError, match="needs the name"):
            split_plugins(words)


def test_a_file_is_imported_under_its_name_and_cannot_replace_an_installed_module(tmp_path):
    (tmp_path / "own_file.py").write_text("value = 1")
    load_plugin("./own_file.py")
    assert sys.modules["own_file"].value == 1
    (tmp_path / "json.py").write_text("raise SystemError")
    with pytest.raises(UserError, match="another module is called json"):
        load_plugin("json.py")
    (tmp_path / "own_broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"own_broken.py cannot be imported \(ZeroDivisionError: division by zero\)"):
        load_plugin("own_broken.py")
    with pytest.raises(UserError, match="no such file"):
        load_plugin("own_absent.py")


def test_a_folder_joins_the_path_only_for_a_class_that_it_holds(tmp_path):
    (tmp_path / "own_net.py").write_text("")
    before = [*sys.path]
    find_own_modules([{"a": ["own_other.Net", "torch.nn.Linear", "own_net.lower", 3]}, "digits/rdm"], [tmp_path])
    assert sys.path == before
    find_own_modules([{"a": ["own_net.Net"]}], [tmp_path])
    assert sys.path == [*before, str(tmp_path)]


def test_own_classes_train_where_they_lie_and_load_elsewhere_with_the_option(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_parts.py").write_text(OWN)
    own = ["--model.denoiser.schedule", "own_parts.OwnSchedule", "--trainer.callbacks+", "own_parts.Report"]
    assert main(["fit", *TINY, *own, "--trainer.default_root_dir", "run"]) == 0
    assert "report: fit starts" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sample = ["sample", "--checkpoint", "../run/last.ckpt", "--number", "2", "--png", "false"]
    monkeypatch.delitem(sys.modules, "own_parts")
    assert main([*sample, "--out", "a"]) == 2
    assert "name its module with --plugin" in capsys.readouterr().err
    assert main([*sample, "--out", "b", "--plugin", "../own_parts.py"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("own_parts.Plain", "own_parts.Plain is no Schedule: let it inherit rcg_lightning.core.schedule.Schedule and"),
        ("own_absent.Schedule", "Python finds no module own_absent, give its file with --plugin"),
    ],
)
def test_a_class_that_does_not_fit_is_told_what_it_lacks(given, message, tmp_path, capsys):
    (tmp_path / "own_parts.py").write_text(OWN)
    assert main(["fit", *TINY, "--model.denoiser.schedule", given]) == 2
    assert message in capsys.readouterr().err

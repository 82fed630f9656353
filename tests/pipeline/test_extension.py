"""Steps whose training is made longer, and steps whose data change outside of their command."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from rcg_lightning.errors import UserError
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import read_pipeline
from rcg_lightning.run_folder import LAST, SHORTER, UNDECAYED, begin_extension

COMMANDS = ("fit", "extract", "sample")


class Commands:
    """Pretended commands: `fit` writes checkpoints that hold their step; keeps the words of every command."""

    def __init__(self):
        self.words = []

    def __call__(self, name, words):
        self.words.append([name, *words])
        if name != "fit":
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(exist_ok=True)
            (folder / "result").write_text("done")
            return
        folder, steps = Path(words[words.index("--trainer.default_root_dir") + 1]), self.steps_of(words)
        torch.save({"step": int(0.8 * steps)}, folder / UNDECAYED)
        torch.save({"step": steps}, folder / LAST)

    @staticmethod
    def steps_of(words):
        return int(words[words.index("--trainer.max_steps") + 1])


@pytest.fixture
def make(tmp_path):
    """Run a pipeline of a training and its samples; return the names of the steps that ran, and the commands' words."""

    def run(steps, version="one"):
        settings = f"max_steps: {steps}, val_check_interval: {1 / steps}"
        (tmp_path / "config.yaml").write_text(f"trainer: {{{settings}}}\n")
        content = {
            "store": {"run": "extract --split train", "version": version, "shared": True},
            "net": {"run": f"fit --config {tmp_path}/config.yaml {{store}}", "steps": steps, "shared": True},
            "samples": {"run": "sample {net}", "shared": True},
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({"steps": content}, sort_keys=False))
        pipeline, commands, lines = Run(read_pipeline(path, COMMANDS), tmp_path / "run", [0]), Commands(), []
        pipeline.work(commands, lines.append)
        return [words[0] for words in commands.words], commands.words, lines

    return run


def step_in(path):
    return torch.load(path, weights_only=True)["step"]


def test_a_longer_training_continues_from_before_the_decay(make, tmp_path):
    folder = tmp_path / "run" / "net"
    assert make(10)[0] == ["extract", "fit", "sample"]
    assert make(10)[0] == []
    ran, words, lines = make(20)
    assert ran == ["fit", "sample"]
    assert words[0][words[0].index("--ckpt_path") + 1] == str(folder / LAST)
    assert any("trained for 10 steps, continues to 20" in line for line in lines)
    assert step_in(folder / SHORTER) == 10
    assert step_in(folder / LAST) == 20
    assert not list((tmp_path / "run").glob("net.until*"))
    assert make(15)[0] in ([], ["sample"])  # trained for longer than that already


def test_a_kill_before_a_longer_training_begins_leaves_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / LAST).write_text("the end")
    torch.save({"step": 8}, tmp_path / UNDECAYED)
    replace = os.replace

    def killed(source, target):
        if Path(target).name == LAST:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_extension(tmp_path)
    assert (tmp_path / LAST).read_text() == (tmp_path / SHORTER).read_text() == "the end"
    monkeypatch.undo()
    begin_extension(tmp_path)
    assert step_in(tmp_path / LAST) == 8


def test_changed_data_are_a_new_version(make, tmp_path):
    make(10)
    assert make(10, "two")[0] == ["extract", "fit", "sample"]
    assert list((tmp_path / "run").glob("net.until*"))  # begins again: another store


@pytest.mark.parametrize(("entry", "message"), [({"steps": 0}, "steps is a number"), ({"steps": True}, "steps is a")])
def test_steps_are_a_number(entry, message, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"steps": {"net": {"run": "fit", **entry}}}))
    with pytest.raises(UserError, match=message):
        read_pipeline(path, COMMANDS)


def test_only_a_training_has_steps(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"steps": {"store": {"run": "extract", "steps": 5}}}))
    with pytest.raises(UserError, match="for a step that runs fit"):
        read_pipeline(path, COMMANDS)

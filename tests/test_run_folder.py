"""The folder of a training run: two checkpoints, a damaged one passed over, another run's files moved away."""

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from helpers.killed_run import KillAtStep, Killed
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import read_pipeline
from rcg_lightning.run_folder import newest_checkpoint, set_run_aside, written_files


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.fixture
def killed(trainer, make_stage, digits, tmp_path):
    """Folder of a run that was killed at step 5, with checkpoints of steps 2 and 4."""
    with pytest.raises(Killed):
        trainer(tmp_path, 6, checkpoint_every=2, callbacks=[KillAtStep(5)]).fit(make_stage(), digits())
    return tmp_path


def test_two_checkpoints_until_training_ends(killed, trainer, make_stage, digits):
    assert [step_of(killed / name) for name in ("last.ckpt", "previous.ckpt")] == [4, 2]
    trainer(killed, 6, checkpoint_every=2).fit(make_stage(), digits(), ckpt_path=killed / "last.ckpt")
    assert step_of(killed / "last.ckpt") == 6
    assert not (killed / "previous.ckpt").exists()


def test_a_file_system_without_hard_links(killed, trainer, make_stage, digits, monkeypatch):
    def none(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", none)
    callbacks = [KillAtStep(7)]
    with pytest.raises(Killed):
        trainer(killed, 8, checkpoint_every=2, callbacks=callbacks).fit(
            make_stage(), digits(), ckpt_path=killed / "last.ckpt"
        )
    assert [step_of(killed / name) for name in ("last.ckpt", "previous.ckpt")] == [6, 4]


@pytest.mark.parametrize("damaged", [lambda content: content[:-100], lambda content: b"", lambda content: b"text" * 99])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(killed, caplog, damaged):
    last, previous = killed / "last.ckpt", killed / "previous.ckpt"
    last.write_bytes(damaged(last.read_bytes()))
    assert newest_checkpoint(killed) == previous
    (record,) = caplog.records
    assert record.getMessage() == f"{last} is damaged or incomplete; training continues from previous.ckpt"
    assert not last.exists()  # or the next checkpoint would replace the whole one by it
    assert newest_checkpoint(killed) == previous
    previous.write_bytes(damaged(previous.read_bytes()))
    assert newest_checkpoint(killed) is None
    assert "training begins again" in caplog.records[-1].getMessage()
    assert sorted(path.name for path in killed.glob("*.damaged")) == ["last.damaged", "previous.damaged"]


def test_a_flipped_bit_is_damage(killed):
    content = bytearray((killed / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (killed / "last.ckpt").write_bytes(content)
    assert newest_checkpoint(killed) == killed / "previous.ckpt"


def test_a_pipeline_continues_from_the_newest_whole_checkpoint(killed, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "one.yaml"
    path.write_text("steps: {one: {run: fit --config digits/generator}}\n")
    run = Run(read_pipeline(path, ["fit"]), path.parent / "my runs", [0])
    (step,) = run.pipeline.steps.values()
    given = []

    def command(name, words):
        given.append(words[words.index("--ckpt_path") + 1] if "--ckpt_path" in words else None)
        if len(given) == 1:
            killed.rename(run.folder(step, 0)) if not any(run.folder(step, 0).iterdir()) else None
            raise Killed

    folder = run.folder(step, 0)
    for _ in range(2):
        try:
            run.execute(step, 0, command, print)
        except Killed:
            (folder / "last.ckpt").write_bytes(b"torn")
    assert given == [None, str(folder / "previous.ckpt")]


def test_another_run_in_the_folder_does_not_mix_with_the_first(trainer, make_stage, digits, tmp_path, caplog):
    def fit(steps, **settings):
        trainer(tmp_path, steps, logger=True).fit(make_stage(), digits(), **settings)

    fit(1)
    (tmp_path / "config.yaml").write_text("first: true")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "network.json").write_text("{}")
    first = {path.name for path in written_files(tmp_path)}
    assert len(first) == 5  # with hparams.yaml and the events
    fit(2, ckpt_path=tmp_path / "last.ckpt")  # the same run
    assert not list(tmp_path.glob("version_*"))
    fit(3)
    fit(4, ckpt_path=tmp_path / "version_0" / "last.ckpt")  # an earlier run that goes on elsewhere
    assert [step_of(tmp_path / f"version_{n}" / "last.ckpt") for n in (0, 1)] == [2, 3]
    assert step_of(tmp_path / "last.ckpt") == 4
    assert yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text()) == {"first": True}
    assert (tmp_path / "version_0" / "encoder").is_dir()
    assert (tmp_path / "notes.txt").is_file()
    assert [len(list(folder.glob("*tfevents*"))) for folder in (tmp_path / "version_0", tmp_path)] == [2, 1]
    assert [record.getMessage() for record in caplog.records if "held" in record.getMessage()] == [
        f"{tmp_path} held another run, which is now in version_{number}" for number in (0, 1)
    ]


def test_logs_of_a_start_that_failed_stay(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_text("")
    set_run_aside(tmp_path, written_files(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["events.out.tfevents.1"]


def test_a_start_that_fails_leaves_the_earlier_run(trainer, make_stage, digits, tmp_path):
    trainer(tmp_path, 1).fit(make_stage(), digits())

    class Fails(Callback):
        def on_fit_start(self, *_):
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path, 2, callbacks=[Fails()]).fit(make_stage(), digits())
    assert step_of(tmp_path / "last.ckpt") == 1

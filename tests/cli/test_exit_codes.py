"""What a user did wrong ends with 2 and one line that names the option or the file, in every command."""

import shlex

import numpy as np
import pytest

from rcg_lightning.cli.main import main

SOURCE = "--data.source Digits --data.source.limit 200"
FIT = f"fit --config digits/generator {SOURCE} --trainer.max_steps 1 --trainer.enable_progress_bar false "
FIT += "--trainer.accelerator cpu --trainer.default_root_dir run"
ENCODER = "--encoder TrainedEncoder --encoder.folder pca"
FEATURES = "--extractor EncoderExtractor --extractor.encoder TrainedEncoder --extractor.encoder.folder pca"
SAMPLE = "sample --checkpoint g/last.ckpt --number 2 --out samples"
EVALUATE = f"evaluate --samples g/last.ckpt --number 64 {SOURCE} {FEATURES}"
COMPARE = f"compare {SOURCE} {FEATURES} --out compared"

FILES = {
    "afile": "x",
    "text.ckpt": "hello",
    "empty.ckpt": "",
    "bad.npz": "PK\3\4",
    "rows.json": "{",
    "number.json": "3",
    "self.yaml": "data: self.yaml",
    "deep.yaml": "a: " + "[" * 2000 + "]" * 2000,
    "trainer_list.yaml": "trainer: [1]",
    "trainer_word.yaml": "trainer: x",
    "model_number.yaml": "model: 3",
    "callback_number.yaml": "trainer: {callbacks: [{class_path: 3}]}",
    "unclosed.yaml": "steps: {a: {run: 'fit \"x'}}",
    "launcher.yaml": "steps: {a: {run: fit, launcher: 3}}",
    "table.yaml": "steps: {a: {run: fit}}\ntable: {run: 3, rows: {a: a}}",
    "rows.yaml": "steps: {a: {run: fit}}\ntable: {run: compare, rows: [a]}",
    "arguments.yaml": "steps: {a: {run: fit}}\narguments: [x]",
    "name.yaml": "name: [x]\nsteps: {a: {run: fit}}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with an encoder, a store, a generator and damaged files of every kind."""
    folder = tmp_path_factory.mktemp("world")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    (folder / "afolder").mkdir()
    np.savez(folder / "flat.npz", arr_0=np.zeros(3, np.uint8))
    np.savez(folder / "none.npz", arr_0=np.zeros((0, 8, 8, 1), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            f"principal {SOURCE} --dim 4 --out pca",
            f"extract {SOURCE} {ENCODER} --out store --accelerator cpu",
            f"fit --config digits/generator {SOURCE} --model.denoiser.network.width 16 --trainer.max_steps 1 "
            "--trainer.enable_progress_bar false --trainer.accelerator cpu --trainer.default_root_dir g",
        ):
            assert main(shlex.split(command)) == 0
    return folder


TRAINER = [
    ("accelerator tpux", "accelerator='tpux'"),
    ("precision foo", "'foo'"),
    ("devices many", "devices"),
    ("devices 0", "devices"),
    ("devices -3", "devices"),
    ("num_nodes 0", "num_nodes"),
    ("strategy foo", "strategy='foo'"),
    ("logger Foo", "trainer.logger: no class Foo"),
    ("logger 5", "trainer.logger"),
    ("logger WandbLogger", "wandb"),
    ("callbacks+ Foo", "trainer.callbacks: no class Foo"),
    ("callbacks 3", "trainer.callbacks"),
    ("max_steps -5", "max_steps"),
    ("val_check_interval -1", "val_check_interval"),
    ("checkpoint_every -1", "every"),
    ("max_time x", "duration='x'"),
    ("limit_val_batches 2.5", "limit_val_batches"),
    ("profiler foo", "profiler"),
    ("fast_dev_run -3", "fast_dev_run"),
    ("gradient_clip_algorithm foo", "gradient_clip_algorithm"),
    ("default_root_dir afile", "afile: file exists"),
    ("default_root_dir /dev/null/x", "/dev/null/x: not a directory"),
    ("callbacks+=EarlyStopping --trainer.callbacks.monitor foo", "metric `foo`"),
    ("callbacks+=ModelCheckpoint --trainer.callbacks.monitor foo", "monitor='foo'"),
    ("logger false --trainer.callbacks+=LearningRateMonitor", "LearningRateMonitor"),
    ("compile foo", "trainer.compile"),
]


@pytest.mark.parametrize(("setting", "line"), TRAINER)
def test_settings_of_the_trainer(raised, world, monkeypatch, setting, line):
    monkeypatch.chdir(world)
    assert line in raised(*shlex.split(f"{FIT} --trainer.{setting}"))


CASES = [
    (f"{FIT} --data.batch_size 0", "batch_size"),
    (f"{FIT} --data.workers -1", "workers"),
    (f"{FIT} --data.source.channels 7", "channels"),
    (f"{FIT} --seed_everything -1", "--seed_everything"),
    (f"{FIT} --ckpt_path text.ckpt", "text.ckpt"),
    (f"{FIT} --init_from empty.ckpt", "empty.ckpt"),
    (f"{FIT} --config self.yaml", "self.yaml includes itself"),
    (f"{FIT} --config deep.yaml", "deep.yaml"),
    (f"{FIT} --config trainer_list.yaml", "trainer should hold keys and values"),
    (f"{FIT} --config trainer_word.yaml", "trainer"),
    (f"{FIT} --config model_number.yaml", "model"),
    (f"{FIT} --config callback_number.yaml", "trainer.callbacks"),
    (f"{FIT} --config afolder", "no config afolder"),
    (f"{FIT} extra", "extra belongs to no option: write --KEY before it"),
    (f"{SAMPLE} --number 0", "--number"),
    (f"{SAMPLE} --tile 0", "tile"),
    (f"{SAMPLE} --devices 0", "devices"),
    (f"{SAMPLE} --accelerator foo", "accelerator='foo'"),
    (f"{SAMPLE} --precision foo", "'foo'"),
    (f"{SAMPLE} --out afile", "afile"),
    (f"{SAMPLE} --representations afolder", "g/last.ckpt is not conditioned on representations"),
    (f"{SAMPLE} --variations-of missing.png {ENCODER}", "g/last.ckpt is not conditioned on representations"),
    (f"{SAMPLE} --config self.yaml", "self.yaml includes itself"),
    (f"extract {SOURCE} {ENCODER} --out afile", "afile"),
    (f"extract {SOURCE} {ENCODER} --out x --accelerator foo", "accelerator='foo'"),
    (f"extract {SOURCE} --encoder TrainedEncoder --encoder.folder afolder --out x", "afolder"),
    ("cluster --store afile --out x", "afile"),
    ("cluster --store store --out x --count 0", "count"),
    ("cluster --store store --out x --count 100000", "100000 clusters"),
    ("cluster --store store --out afile", "afile"),
    ("neighbours --store store --out x --memory x", "memory"),
    ("neighbours --store store --out x --accelerator foo", "no accelerator foo"),
    (f"principal {SOURCE} --out p --dim 1000", "dim"),
    ("convert --from text.ckpt --out x", "text.ckpt"),
    ("bundle --generator text.ckpt --out x", "text.ckpt"),
    (f"{EVALUATE} --accelerator foo", "no accelerator foo"),
    (f"evaluate --samples g/last.ckpt {FEATURES} --statistics bad.npz", "bad.npz"),
    (f"{EVALUATE} --against number.json", "number.json"),
    (f"{EVALUATE} --samples flat.npz", "flat.npz"),
    (f"{EVALUATE} --samples none.npz", "none.npz"),
    (f"{EVALUATE} --samples text.ckpt", "text.ckpt"),
    (f"probe {SOURCE} {ENCODER} --accelerator foo", "no accelerator foo"),
    (f"reconstruct --codec Pixels {SOURCE} --accelerator foo", "accelerator='foo'"),
    (f"{COMPARE} --rows rows.json", "rows.json"),
    (f"{COMPARE} --rows number.json", "number.json"),
    ("bench --only RDM --device foo", "no accelerator foo"),
    ("bench --only RDM --compare number.json", "number.json"),
    ("reproduce depth --runs number.json", "number.json"),
    ("reproduce depth --runs missing", "missing"),
    ("reproduce depth --out afolder", "afolder"),
    ("pipeline digits --root afile", "afile"),
    ("pipeline self.yaml", "self.yaml includes itself"),
    *((f"pipeline {name}.yaml --dry-run", f"{name}.yaml") for name in (
        "unclosed", "launcher", "table", "rows", "arguments", "name", "model_number")),
]  # fmt: skip


@pytest.mark.parametrize(("command", "line"), CASES)
def test_mistakes(raised, world, monkeypatch, command, line):
    monkeypatch.chdir(world)
    assert line in raised(*shlex.split(command))


def test_a_fault_of_this_program_ends_with_1(rcg, world, monkeypatch):
    def faulty(*_):
        raise ValueError("a fault")

    monkeypatch.chdir(world)
    monkeypatch.setattr("rcg_lightning.stages.diffusion.DiffusionStage.losses", faulty)
    code, _, error = rcg(*shlex.split(FIT))
    assert code == 1
    assert "ValueError: a fault (--traceback shows where)" in error

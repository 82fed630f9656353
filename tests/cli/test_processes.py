"""The commands as two processes: the same stores to the last bit, the same metrics."""

import hashlib
import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import rcg_process
from helpers.autoencoders import save_vq

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def both(rcg, tmp_path):
    """Run a command in this process and in two; return both output paths."""

    def run(*argv, out):
        one, two = tmp_path / "one", tmp_path / "two"
        code, _, error = rcg(*argv, "--accelerator", "cpu", "--out", one / out)
        assert code == 0, error
        assert rcg_process.pair([*argv, "--out", two / out], tmp_path) == [0, 0], (tmp_path / "output.txt").read_text()
        return one / out, two / out

    return run


def test_extraction(both, toy, tmp_path):
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    codec = ["--codec", "VQTokens", "--codec.folder", save_vq(tmp_path / "tokenizer")]
    one, two = both("extract", *REAL, *encoder, *codec, "--shard_rows", 100, out="store")
    assert files(one) == files(two)
    assert len(list(one.glob("*.tokens.npy"))) == len(list(one.glob("*.representation.npy"))) == 3


def test_sampling(both, toy):
    prior = ["--prior", toy / "rdm" / "last.ckpt"]
    words = ["sample", "--checkpoint", toy / "representation" / "last.ckpt", *prior, "--number", 1100]
    one, two = both(*words, "--png", "false", "--npz", "true", "--batch_size", 300, out="samples")
    assert files(one / "store") == files(two / "store")
    assert len(list((one / "store").glob("*.npy"))) == 2  # one per process
    assert (one / "samples.npz").read_bytes() == (two / "samples.npz").read_bytes()


def test_evaluation(both, toy):
    classifier = ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]
    words = ["evaluate", "--samples", toy / "none" / "last.ckpt", "--number", 150, "--batch_size", 64]
    words += ["--seeds", 2, "--parzen", "true", "--memorisation", 4, "--all", "true"]
    one, two = both(*words, *classifier, *REAL, out="metrics.json")
    alone, together = json.loads(one.read_text()), json.loads(two.read_text())
    assert alone["metrics"] == pytest.approx(together["metrics"], rel=1e-9)
    assert alone["closest"]["rows"] == together["closest"]["rows"]
    assert alone["protocol"] == together["protocol"]


def test_evaluation_of_representations(both, toy):
    stores = [f"--data.stores=[{toy}/store]", f"--data.eval_stores=[{toy}/eval_store]"]
    words = ["evaluate", "--samples", toy / "rdm" / "last.ckpt", "--number", 150, "--batch_size", 64, *REAL, *stores]
    one, two = both(*words, out="metrics.json")
    alone, together = json.loads(one.read_text()), json.loads(two.read_text())
    assert alone["metrics"] == pytest.approx(together["metrics"], rel=1e-9)


def test_metrics_during_training_are_of_both_processes(toy, tmp_path):
    """451 evaluation images are shared unequally; every second validation is scored."""
    fit = ["fit", "--config", "digits/generator", "--data.source.limit", 256, "--data.batch_size", 16]
    fit += ["--model.denoiser.network.width", 32, "--model.sampler.steps", 3, "--trainer.max_steps", 5]
    fit += ["--trainer.val_check_interval", 1, "--trainer.log_every_n_steps", 1, "--trainer.accelerator", "cpu"]
    fidelity = {"class_path": "Fidelity", "init_args": {"every": 2, "extractor": {"class_path": "ClassifierExtractor"}}}
    fidelity["init_args"]["extractor"]["init_args"] = {"folder": str(toy / "classifier" / "classifier")}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [fidelity]}}))
    fit += ["--config", tmp_path / "more.yaml", "--trainer.default_root_dir", tmp_path / "run"]
    processes = rcg_process.pair(fit, tmp_path, "--trainer.devices")
    assert processes == [0, 0], (tmp_path / "output.txt").read_text()
    log = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "fd/classifier_451_train" in log.Tags()["scalars"]
    assert len({event.value for event in log.Scalars("fd/classifier_451_train")}) == 2


def test_a_step_on_two_devices_runs_in_new_processes(rcg, toy, tmp_path):
    """The pipeline starts one process, and Lightning the second."""
    run = f"sample --checkpoint {toy}/none/last.ckpt --number 1100 --png false --accelerator cpu"
    steps = {"apart": {"run": run, "devices": 2}, "here": {"run": run}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"steps": steps}, sort_keys=False))
    code, output, error = rcg("pipeline", tmp_path / "two.yaml", "--root", tmp_path)
    assert code == 0, output + error
    apart, here = (tmp_path / "two" / "seed0" / name / "store" for name in ("apart", "here"))
    assert files(apart) == files(here)

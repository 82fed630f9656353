"""Generators conditioned on instances, from stores to samples, through the commands."""

import numpy as np
import pytest

from rcg_lightning.stages.stage_folder import bundle_parts


@pytest.fixture(scope="module")
def icgan(toy, tmp_path_factory):
    """Folder with ``gan`` (by class and instance), ``near`` (neighbours) and ``bank`` (instances)."""
    from rcg_lightning.cli.main import main

    folder = tmp_path_factory.mktemp("icgan")
    (folder / "joint.yaml").write_text(
        "model: {init_args: {condition: {class_path: JointCondition, init_args: {conditions: "
        "[{class_path: ClassCondition}, {class_path: InstanceCondition}]}}}}\n"
    )
    stores = f"[{toy / 'store'},{folder / 'near'}]"
    data = ["--data.source.limit=256", f"--data.stores={stores}"]
    fit = ["fit", "--config=digits/gan", f"--config={folder / 'joint.yaml'}", *data, "--data.batch_size=16"]
    quiet = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    for argv in (
        ["neighbours", "--store", toy / "store", "--k", "5", "--out", folder / "near"],
        ["instances", "--config=digits/data", *data, "--count", "20", "--out", folder / "bank"],
        [
            *fit,
            *quiet,
            f"--data.eval_stores=[{toy / 'eval_store'}]",
            f"--trainer.default_root_dir={folder / 'gan'}",
        ],
    ):
        assert main([str(word) for word in argv]) == 0
    return folder


def samples(rcg, out, icgan, *argv):
    words = ["--checkpoint", icgan / "gan" / "last.ckpt", *argv, "--out", out, "--npz", "true", "--accelerator", "cpu"]
    code, _, error = rcg("sample", *words)
    assert code == 0, error
    return np.load(out / "samples.npz")["arr_0"]


def test_instances_are_chosen_by_seed_or_given(rcg, icgan, toy, tmp_path):
    bank = ["--instances", icgan / "bank"]
    many = samples(rcg, tmp_path / "many", icgan, *bank, "--number", 12)
    few = samples(rcg, tmp_path / "few", icgan, *bank, "--number", 3, "--first_seed", 4, "--batch_size", 2)
    assert np.array_equal(few, many[4:7])
    others = ["--instances", toy / "eval_store", "--classes", "1,2"]
    assert samples(rcg, tmp_path / "others", icgan, *others, "--number", 4).shape == (4, 8, 8, 1)
    (icgan / "bank" / "secret").symlink_to("/etc/hostname")
    code, _, error = rcg("bundle", "--generator", icgan / "gan" / "last.ckpt", *bank, "--out", tmp_path / "bundle")
    assert code == 0, error
    assert "instances" in bundle_parts(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "instances" / "secret").exists()
    words = ["--checkpoint", tmp_path / "bundle", "--number", 12, "--npz", "true", "--out", tmp_path / "bundled"]
    assert rcg("sample", *words, "--accelerator", "cpu")[0] == 0
    assert np.array_equal(np.load(tmp_path / "bundled" / "samples.npz")["arr_0"], many)


def test_unfit_instances_are_rejected(raised, icgan, toy, tmp_path):
    start = ["sample", "--checkpoint", icgan / "gan" / "last.ckpt", "--out", tmp_path / "out"]
    assert "--prior, or a store of them with --instances" in raised(*start)
    assert "labels of their neighbours" in raised(*start, "--instances", toy / "store", "--accelerator", "cpu")
    assert "holds no representations" in raised(*start, "--instances", icgan / "near")
    line = raised(*start, "--instances", icgan / "bank", "--prior", toy / "rdm" / "last.ckpt")
    assert "--instances excludes --prior" in line
    other = ["sample", "--checkpoint", toy / "none" / "last.ckpt", "--out", tmp_path / "out"]
    assert "of no use" in raised(*other, "--instances", icgan / "bank")

"""Fixtures to test the commands: the toy pipeline's folders, and further trained stages."""

import pytest
import torch

from rcg_lightning.cli.main import main

TINY = [
    "--data.source.limit=256",
    "--data.batch_size=32",
    "--model.denoiser.network.width=32",
    "--model.sampler.steps=5",
]


@pytest.fixture
def rcg(capsys):
    """Run a command in this process; return exit code, stdout and stderr."""

    def run(*argv):
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def raised(rcg):
    """Run a command that must fail and return its one-line message."""

    def run(*argv):
        code, _, error = rcg(*argv)
        lines = [line for line in error.splitlines() if line.startswith("rcg ")]
        assert code == 2, error
        assert len(lines) == 1, error
        assert "Traceback" not in error
        return lines[0].partition(": ")[2]

    return run


@pytest.fixture(scope="session")
def toy(finished, tmp_path_factory):
    """Folder with the toy pipeline's steps (seed 0), the classifier, a class-conditional RDM and a joint generator.

    Generators after a few steps output the same grey image for all inputs, so these get random weights.
    """
    folder = tmp_path_factory.mktemp("toy")
    for path in [*(finished / "toy" / "seed0").iterdir(), finished / "toy" / "classifier"]:
        if path.name in ("none", "class", "representation", "rdm"):
            _awake(path / "last.ckpt", folder / path.name / "last.ckpt")
        elif path.is_dir():
            (folder / path.name).symlink_to(path)
    stores = [f"--data.stores=[{folder}/store]", f"--data.eval_stores=[{folder}/eval_store]"]
    joint = folder / "joint.yaml"
    joint.write_text(
        "model: {init_args: {condition: {class_path: JointCondition, init_args: {conditions: "
        "[{class_path: RepresentationCondition}, {class_path: ClassCondition}]}}}}\n"
    )
    quick = [*TINY, *stores, "--trainer.max_steps=3", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    for name, words in {
        "rdm_class": ["--config", "digits/rdm", "--model.condition", "ClassCondition"],
        "joint": ["--config", "digits/generator", "--config", joint],
    }.items():
        argv = ["fit", *words, *quick, f"--trainer.default_root_dir={folder / name}"]
        assert main([str(word) for word in argv]) == 0
        _awake(folder / name / "last.ckpt", folder / name / "last.ckpt")
    return folder


def _awake(source, target):
    checkpoint, generator = torch.load(source, weights_only=True), torch.Generator().manual_seed(0)
    for tensor in checkpoint["state_dict"].values():
        if tensor.is_floating_point():
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    target.parent.mkdir(exist_ok=True)
    torch.save(checkpoint, target)

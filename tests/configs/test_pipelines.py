"""Every shipped pipeline: parse its file and each of its commands, without running any."""

import inspect
from contextlib import suppress
from pathlib import Path

import pytest

from rcg_lightning.cli import cluster, compare, extract, instances, neighbours, principal, sample, stages
from rcg_lightning.cli import main as cli
from rcg_lightning.cli.pipeline import STEP_COMMANDS
from rcg_lightning.config_files import find_config
from rcg_lightning.pipeline.runner import TABLE, Run
from rcg_lightning.pipeline.spec import Step, read_pipeline

PIPELINES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "pipeline").glob("*.yaml"))
ROWS = {
    "digits": {"none", "cluster", "class", "class_balanced", "representation", "representation_guided", "oracle"},
    "digits_principal": {"representation", "oracle"},
    "folder": {"none", "cluster", "representation", "oracle"},
    "imagenet256_rdm": set(),
    "digits_generators": {
        f"{kind}, {condition}"
        for kind in ("mlp", "dit", "unet", "latent", "mage", "gan")
        for condition in ("none", "representation")
    },
}


IN_INSTANCES = {"none", "instance", "instance, unseen"}
OF_DIGITS = {"class", "representation", "instance, 100 chosen", "instance, of the RDM", "class and instance"}
ROWS |= {
    "digits_icgan": IN_INSTANCES | OF_DIGITS | {"instance, of 0-4", "instance, 0-4 swapped for 5-9"},
    "mnist_icgan": IN_INSTANCES,
    "cifar10_icgan": IN_INSTANCES,
    "digits_views": {"centre view", "1 crop", "2 crops", "4 crops", "16 crops", "64 crops", "new crops"},
}
BUDGETS = {"mnist_icgan": "mnist/small_gan"}


class Stop(Exception):
    """Stops a command after parsing."""


@pytest.fixture
def parsed(monkeypatch):
    """List of (command, parsed values); no command is run."""
    seen = []

    def stop(self):
        seen.append(("fit", vars(self.config.fit)))
        raise Stop

    monkeypatch.setattr(stages.StageCLI, "instantiate_classes", stop)
    for module in (cluster, compare, extract, instances, neighbours, principal, sample):
        name = module.__name__.rpartition(".")[2]

        def mock(name=name, **values):
            seen.append((name, values))

        mock.__signature__ = inspect.signature(getattr(module, name))
        mock.__doc__ = getattr(module, name).__doc__
        monkeypatch.setattr(module, name, mock)
    return seen


@pytest.mark.parametrize("name", PIPELINES)
def test_every_command_of_a_pipeline_is_accepted(name, parsed, tmp_path):
    pipeline = read_pipeline(find_config(name, "pipeline"), STEP_COMMANDS)
    assert pipeline.name == name
    run = Run(pipeline, tmp_path / name, [0])
    table = [Step(TABLE, pipeline.table, shared=True, arguments=pipeline.arguments)] if pipeline.table else []
    steps = [*pipeline.steps.values(), *table]
    for step in steps:
        words = run.words(step, 0) + (["--rows", "rows.json"] if step.name == TABLE else [])
        with suppress(Stop):
            cli.run(words[0], words[1:])
    assert len(parsed) == len(steps)
    for step, (command, values) in zip(steps, parsed):
        folder = str(run.folder(step, 0))
        assert step.run.startswith(command)
        assert str(values["trainer"].default_root_dir if command == "fit" else values["out"]) == folder
        devices = values["trainer"].devices if command == "fit" else values.get("devices", 1)
        assert str(devices) == str(step.devices)


@pytest.mark.parametrize("name", PIPELINES)
def test_rows_compare_the_same_number_of_samples(name):
    pipeline = read_pipeline(find_config(name, "pipeline"), STEP_COMMANDS)
    assert pipeline.rows.keys() == ROWS.get(name, ROWS["digits"])
    counts = {pipeline.steps[step].run.partition("--number ")[2].split()[0] for step in pipeline.rows.values()}
    assert len(counts) <= 1


def test_one_budget_serves_all_conditions():
    for name in set(PIPELINES) - {"imagenet256_rdm", "digits_generators", "digits_views"}:
        steps = read_pipeline(find_config(name, "pipeline"), STEP_COMMANDS).steps
        conditions = [step for step in ("none", "cluster", "class", "representation", "instance") if step in steps]
        data, _, kind = name.partition("_")
        config = BUDGETS.get(name, f"{data}/{'gan' if kind == 'icgan' else 'generator'}")
        assert {steps[step].run.split()[2] for step in conditions} == {config}

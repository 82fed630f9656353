"""The plan's arithmetic, on pretended costs."""

from types import SimpleNamespace

import pytest

from rcg_lightning.data.image_folders import FlatFolder
from rcg_lightning.errors import UserError
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import Pipeline, Step
from rcg_lightning.planning.encoder_choice import EncoderChoice
from rcg_lightning.planning.pipeline_file import PipelineFile
from rcg_lightning.planning.plan import (
    EVALUATION_ENCODER,
    Costs,
    costs_from_plain,
    costs_to_plain,
    expected,
    make_plan,
    slowed,
    table,
    total,
)
from rcg_lightning.planning.run_plan import fit_data
from rcg_lightning.planning.step_timing import StageCost, fitting_batch


def costs(seconds=1.0, **given):
    stages = {
        "encoder": StageCost(64, 1, 0.3 * seconds, 1.2e9, 10**6),
        "generator": StageCost(64, 1, 1.0 * seconds, 1.5e9, 2 * 10**6),
        "rdm": StageCost(128, 1, 0.02 * seconds, 1e9, 10**6),
    }
    fixed = {"train": 2700, "evaluation": 300, "reading": 1e-4, "stages": stages, "encoding": 1e-3}
    return Costs(**fixed | {"dim": 64, "views": 2, "sampler_steps": 25} | given)


def steps(plan):
    return {stage.name: stage.steps for stage in plan if stage.steps}


@pytest.mark.parametrize("budget", [600, 1800, 8 * 3600])
@pytest.mark.parametrize("speed", [0.01, 1.0, 2.0])
def test_a_plan_fills_its_budget(budget, speed):
    plan = make_plan(costs(speed), budget, None)
    assert total(plan) == pytest.approx(budget, rel=0.15)
    assert [stage.name for stage in plan] == ["encoder", "store", "generator", "rdm", "samples", "gallery", "verdict"]
    generator = next(stage for stage in plan if stage.name == "generator")
    assert generator.seconds > 0.5 * budget
    assert 4 <= generator.validations <= 20


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_seeds_and_the_comparison_are_within_the_budget(seeds, tmp_path):
    stages = costs(0.1).stages
    several = costs(stages={**stages, EVALUATION_ENCODER: stages["encoder"]}, seeds=seeds, compare=True)
    plan = make_plan(several, 3600, None)
    assert total(plan) == pytest.approx(3600, rel=0.15)
    generator, comparison = (next(one for one in plan if one.name == name) for name in ("generator", "comparison"))
    assert generator.repeats == 3 * seeds
    assert comparison.seconds > seeds * 4 * 1000 * several.sampler_steps * several.forward()

    encoder = EncoderChoice("moco", "no reason")
    content = PipelineFile(tmp_path, encoder, steps(plan), "v", seeds, "cpu", 64, 2700, compare=True).content("run")
    assert content["table"]["run"].endswith("--accelerator cpu")  # as all steps
    entries = {name: Step(name, entry["run"], entry["shared"]) for name, entry in content["steps"].items()}
    todo = Run(Pipeline("run", entries, None, {}), tmp_path, list(range(seeds))).todo()
    assert sum(expected(step.name, plan) for step, _ in todo) == pytest.approx(total(plan))


def test_few_samples_take_as_long_as_was_measured():
    one = costs(stages={**costs().stages, "generator": StageCost(64, 1, 0.001, 1e9, 10**6, evaluation=0.05)})
    assert one.validation() > one.sampler_steps * 0.05
    assert one.samples(16) == one.samples(64) == pytest.approx(25 * 0.05)


def test_large_checkpoints_are_planned_and_written_less_often():
    large = costs(0.1, stages={**costs(0.1).stages, "generator": StageCost(64, 1, 0.1, 1e9, 66 * 10**6)})
    short, long = (make_plan(large, budget, None) for budget in (180, 3600))
    assert total(short) == pytest.approx(180, rel=0.15)
    saves = [next(stage.saves for stage in plan if stage.name == "generator") for plan in (short, long)]
    assert saves == [2, 10]


def test_what_is_spent_is_gone():
    whole, rest = (steps(make_plan(costs(), 1800, None, spent)) for spent in (0, 900))
    assert rest["generator"] < 0.6 * whole["generator"]


def test_a_longer_budget_gives_more_steps_and_never_fewer_than_before():
    before = steps(make_plan(costs(), 600, None))
    assert all(count >= before[name] for name, count in steps(make_plan(costs(), 1800, None, least=before)).items())
    assert steps(make_plan(costs(), 500, None, least=before)) == before


def test_steps_instead_of_a_budget():
    assert steps(make_plan(costs(), None, 50)) == {"encoder": 50, "generator": 50, "rdm": 50}


def test_a_budget_too_small_for_a_step_is_rejected_with_one_that_is_not():
    with pytest.raises(UserError, match=r"--budget 20 s leaves no step .* give at least --budget (\d+)m") as caught:
        make_plan(costs(10), 20, None)
    needed = int(str(caught.value).rpartition(" ")[2][:-1])
    assert all(steps(make_plan(costs(10), 60 * needed, None)).values())


def test_a_run_without_representations_has_no_store():
    only = {"generator": StageCost(64, 1, 1.0, 1.5e9, 10**6)}
    plan = make_plan(costs(stages=only, encoding=None), 600, None)
    assert [stage.name for stage in plan] == ["generator", "samples", "gallery", "verdict"]
    assert total(plan) == pytest.approx(600, rel=0.15)


def test_the_table_shows_epochs_and_the_total():
    lines = table(make_plan(costs(), None, 270), 2700).splitlines()
    assert lines[0].split() == ["stage", "steps", "epochs", "time", "memory", "disk"]
    assert "6.4" in lines[3]  # 270 steps of 64 of 2,700 images
    assert lines[-1].startswith("total")


def test_costs_go_through_a_file_and_to_a_slower_machine():
    assert costs_from_plain(costs_to_plain(costs())) == costs()
    assert steps(make_plan(slowed(costs(), 2), 1800, None))["generator"] < 0.6 * 1800


def test_a_batch_is_halved_until_it_fits_and_accumulated():
    assert fitting_batch(1e9, 10e6, 64, 8e9) == (64, 1)
    assert fitting_batch(1e9, 100e6, 64, 8e9) == (32, 2)
    assert fitting_batch(1e9, 5e9, 64, 8e9) == (1, 64)
    with pytest.raises(UserError, match=r"not enough memory for one image: 6.0 GB are needed, 4.0 GB are free"):
        fitting_batch(1e9, 5e9, 64, 4e9)


def test_few_images_of_very_many_are_used_where_all_would_take_the_budget(tmp_path):
    source = FlatFolder(tmp_path)
    choices = SimpleNamespace(source=source, costs=costs(train=900_000))
    lines = []
    fit_data(choices, 1800, lines.append)
    assert choices.costs.train == choices.source.limit == int(0.2 * 1800 / (2 * (1e-3 + 1e-4)))
    assert "163,636 of 900,000 images" in lines[0]
    assert total(make_plan(choices.costs, 1800, None)) == pytest.approx(1800, rel=0.15)
    choices = SimpleNamespace(source=source, costs=costs())
    fit_data(choices, 1800, lines.append)
    assert choices.source is source

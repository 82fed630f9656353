"""Options that need no value, in every command."""

import pytest
import yaml

PIPELINE = "steps: {a: {run: fit --config digits/rdm}}\n"


@pytest.mark.parametrize("words", [["--dry-run"], ["--dry_run"], ["--dry-run", "true"], ["--dry_run=true"]])
@pytest.mark.parametrize("first", [True, False])
def test_a_dry_run(rcg, tmp_path, words, first):
    (tmp_path / "mine.yaml").write_text(PIPELINE)
    root = ["--root", tmp_path / "runs"]
    argv = [tmp_path / "mine.yaml", *words] if first else [*words, tmp_path / "mine.yaml"]
    code, output, error = rcg("pipeline", *argv, *root)
    assert code == 0, error
    assert "rcg fit --config digits/rdm" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        (["fit", "--trainer.fast_dev_run"], ["trainer", "fast_dev_run"]),
        (["fit", "--trainer.compile"], ["trainer", "compile"]),
        (["fit", "--model.stratified"], ["model", "init_args", "stratified"]),
        (["fit", "--model.init_args.stratified"], ["model", "init_args", "stratified"]),
        # the warmup of a learning rate is a number
        (["fit", "--model.ema.warmup"], ["model", "init_args", "ema", "init_args", "warmup"]),
        (["validate", "--verbose"], ["verbose"]),
    ],
)
def test_a_stages_options_are_flags(rcg, argv, keys):
    code, output, error = rcg(argv[0], "--config", "digits/rdm", *argv[1:], "--print_config")
    assert code == 0, error
    value = yaml.safe_load(output)
    for key in keys:
        value = value[key]
    assert value is True


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["sample", "--checkpoint", "x", "--out", "y", "--npz"], "npz"),
        (["sample", "--checkpoint", "x", "--npz", "--out", "y"], "npz"),
        (["sample", "--checkpoint", "x", "--out", "y", "--compile"], "compile"),
        (["evaluate", "--samples", "x", "--all", "--json"], "all"),
        (["bench", "--baseline"], "baseline"),
        (["tag", "--config", "digits/tags_data", "--checkpoint", "x", "--vectors", "y", "--all-words"], "all_words"),
    ],
)
def test_a_commands_options_are_flags(rcg, argv, key):
    code, output, error = rcg(*argv, "--print_config")
    assert code == 0, error
    assert yaml.safe_load(output)[key] is True


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["sample", "--number", "--out", "y"], "number is given without a value"),
        (["sample", "--checkpoint", "x", "--out"], "out is given without a value"),
        (["fit", "--config", "digits/rdm", "--model.ema.decay"], "model.ema.decay is given without a value"),
    ],
)
def test_other_options_need_a_value(raised, argv, line):
    assert line in raised(*argv)

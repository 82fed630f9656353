"""Mistakes on the command line and in configs: one line with the key, the problem and the nearest valid name."""

import pytest

FIT = ["fit", "--config", "digits/rdm"]
EXTRACT = ["extract", "--config", "digits/data", "--out", "x", "--encoder"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--model.netwrok=3"], "unknown key model.netwrok: did you mean model.denoiser.network?"),
        (["--model.condtion=NoCondition"], "unknown key model.condtion: did you mean model.condition?"),
        (["--model.denoiser.network.widht=3"], "did you mean model.denoiser.network.width?"),
        (["--trainer.max_step", "3"], "unknown key trainer.max_step: did you mean trainer.max_steps?"),
        (["--trainer.max_steps", "many"], "trainer.max_steps: should be int, not many"),
        (["--data.source.limt=3"], "unknown key data.source.limt: did you mean data.source.limit?"),
        (["--data.source", "Digit"], "data.source: no class Digit: did you mean Digits?"),
        (["--data.source", "FlatFolder"], "missing: --data.source.root"),
        (["--data.batch_size", "[3]"], "data.batch_size: should be int, not [3]"),
        (["--data.stores", "3"], "data.stores: should be a list, such as [3]"),
        (["--data", "../nope.yaml"], "data: no file ../nope.yaml"),
        (["--model", "RDN"], "model: no class RDN, known are AdversarialStage, ClassifierStage"),
        (["--model", "DifusionStage"], "model: no class DifusionStage: did you mean DiffusionStage?"),
        (
            ["--model.condition", "ClasCondition"],
            "model.condition: no class ClasCondition: did you mean ClassCondition?",
        ),
        (["--trainer.callbacks+", "Fidelty"], "trainer.callbacks: no class Fidelty: did you mean Fidelity?"),
        (["--modle.seed", "3"], "unknown key modle.seed: did you mean model.seed?"),
        (["--config", "digits_rdm"], "no config digits_rdm: give a file, or the name of a shipped one (digits/rdm"),
        (["--config"], "--config is given without a value"),
        (["--trainer.precision", "16-mixed"], "trainer.precision cannot be 16-mixed: take bf16-mixed, or 32-true"),
    ],
)
def test_fit_suggests_the_nearest_name(raised, argv, line):
    assert line in raised(*FIT, *argv)


STEPS = "training is counted in steps: trainer.max_steps"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        *((name, STEPS) for name in ("max_epochs", "trainer.max_epochs", "epochs", "num-train-epochs")),
        ("batch_size", "did you mean data.batch_size?"),
        ("model.batch_size", "did you mean data.batch_size?"),
        ("lr", "did you mean model.optimizer.lr?"),
        ("model.learning_rate", "did you mean model.optimizer.lr?"),
        ("gpus", "did you mean trainer.devices?"),
        ("seed", "did you mean trainer.seed?"),
        ("output_dir", "did you mean trainer.default_root_dir?"),
        ("fp16", "did you mean trainer.precision?"),
        ("amp", "did you mean trainer.precision?"),
        ("resume", "did you mean ckpt_path?"),
        ("num_workers", "did you mean data.workers?"),
        ("data.num_workers", "did you mean data.workers?"),
        ("gradient_accumulation_steps", "did you mean trainer.accumulate_grad_batches?"),
    ],
)
def test_names_from_other_programs_are_understood(raised, option, line):
    assert line in raised(*FIT, f"--{option}", "3")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("model: {init_args: {denoiser: {netwrok: {width: 3}}}}", "model.denoiser.netwrok: did you mean"),
        ("trainer: {max_step: 3}", "unknown key trainer.max_step: did you mean trainer.max_steps?"),
        ("modle: {seed: 3}", "unknown key modle.seed: did you mean model.seed?"),
        ("data: {init_args: {source: {class_path: Digits, init_args: {limt: 5}}}}", "data.source.limt: did you mean"),
        ("data: {init_args: {batch_size: three}}", "data.batch_size: should be int, not three"),
        ("model: {class_path: rcg_lightning.stages.difusion.DiffusionStage}", "did you mean DiffusionStage?"),
        ("model: {init_args: {codec: {class_path: rcg_lightning.pretrained.codecs.Pixel}}}", "did you mean Pixels?"),
        ("model: [\ndata: 3", "line 2: no valid YAML"),
        ("- 3", "should hold keys and values"),
    ],
)
def test_mistakes_in_configs_are_reported(raised, tmp_path, content, line):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert line in raised(*FIT, "--config", path)


def test_a_broken_fragment_is_named(raised, tmp_path):
    (tmp_path / "fragment.yaml").write_text("a: [")
    (tmp_path / "circle.yaml").write_text("data: circle.yaml")
    assert f"{tmp_path / 'circle.yaml'} includes itself" in raised(*FIT, "--config", tmp_path / "circle.yaml")
    (tmp_path / "mine.yaml").write_text("data: fragment.yaml")
    assert f"{tmp_path / 'fragment.yaml'}, line 1" in raised(*FIT, "--config", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["fit"], "missing: --data, --model"),
        (["fit", "--max_steps", "3"], "unknown key max_steps: did you mean trainer.max_steps?"),
        (["validate", "--config", "digits/rdm"], "give --ckpt_path"),
        (["extract", "--config", "digits/data"], "missing: --out"),
        ([*EXTRACT, "TrainedEncodr"], "encoder: no class TrainedEncodr: did you mean TrainedEncoder?"),
        ([*EXTRACT, "TrainedEncoder", "--encoder.foldr", "y"], "encoder.foldr: did you mean encoder.folder?"),
        ([*EXTRACT, "TrainedEncoder", "--encoder.folder", "y", "--split", "trai"], "split: should be one of"),
        (["evaluate", "--samples", "x", "--extractor", "ClassifierExtractor"], "missing: --extractor.folder"),
        (["sample", "--nmber", "3"], "unknown key nmber: did you mean number?"),
        (["sample", "--checkpoint", "x", "--out", "y", "--png", "maybe"], "png: should be bool, not maybe"),
        (["sample", "--checkpoint", "x", "--out", "y", "--guidance", "much"], "guidance: should be float, not much"),
        (["sample", "--checkpoint", "x", "--out", "y", "--classes", "3,x"], "classes: should be int, not x"),
        (["sample", "--output_dir", "x"], "unknown key output_dir: did you mean out?"),
        (["sample", "--seed", "3"], "unknown key seed: did you mean first_seed?"),
        (["sample", "--num_samples", "3"], "unknown key num_samples: did you mean number?"),
        (["sample", "--cfg_scale", "3"], "unknown key cfg_scale: did you mean guidance?"),
        (["sample", "--no-png"], "unknown key no_png: give --png false"),
        (["pipeline", "digit"], "no config digit: give a file, or the name of a shipped one (digits"),
        (["pipeline", "digits", "--seds", "2"], "unknown key seds: did you mean seeds?"),
        (["cluster", "--store", "nope", "--out", "x"], "no store at nope: make it with rcg extract"),
    ],
)  # fmt: skip
def test_every_command_reports_mistakes(raised, tmp_path, monkeypatch, argv, line):
    monkeypatch.chdir(tmp_path)
    assert line in raised(*argv)
    assert not list(tmp_path.iterdir())

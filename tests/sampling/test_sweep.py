"""Sweeps over sampling settings: one set of representations, nothing scored twice, table and plots."""

import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import rcg_process
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.samplers import DDIM, Ancestral, LinspaceSpacing
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.reference import Reference, real_images
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.sampling.loading import Loaded
from rcg_lightning.sampling.sweep import ScoreCache
from rcg_lightning.sampling.sweep_sampling import SampleRequest, SweepSampling
from rcg_lightning.sampling.sweep_settings import plain_settings, settings_of, variant
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import DataSpec

SPEC = DataSpec(
    (1, 8, 8),
    classes=10,
    columns={"representation": {"shape": [6]}},
    identities={"representation": "encoder-1"},
)


@pytest.fixture
def models(make_stage, awake, save, tmp_path):
    """Checkpoints of a generator with two EMA weights, of its prior, of one without a condition; and a classifier."""
    kinds = {
        "generator": make_stage(RepresentationCondition(), ema=EMA({"short": 0.5, "long": 0.9})),
        "rdm": make_stage(codec=Representations(), conditioner=Conditioner(drop=0.0)),
        "none": make_stage(sampler=Ancestral(4)),
        "rdm_class": make_stage(ClassCondition(), codec=Representations()),
    }
    for name, stage in kinds.items():
        save(awake(stage.build(SPEC)), tmp_path / f"{name}.ckpt")
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (8, 12)), 10)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 10, "dim": 12})
    return tmp_path


@pytest.fixture
def words(models):
    """The command line of a small sweep, without its settings."""
    classifier = ["--extractor", "ClassifierExtractor", "--extractor.folder", models / "classifier"]
    data = ["--data.source", "Digits", "--data.source.limit", 128, "--accelerator", "cpu", "--number", 40]
    both = ["--checkpoint", models / "generator.ckpt", "--prior", models / "rdm.ckpt"]
    return ["sweep", *both, *classifier, *data, "--out", models / "sweep"]


@pytest.fixture
def counted(monkeypatch):
    """Record calls of Generator.sample: kind of output and number of seeds."""
    calls = []
    sample = Generator.sample

    def counting(self, batch, *args, **named):
        calls.append((self.codec.makes, len(batch["seed"])))
        return sample(self, batch, *args, **named)

    monkeypatch.setattr(Generator, "sample", counting)
    return calls


def extractor_at(models):
    return ClassifierExtractor(models / "classifier")


def without(words, *options):
    """Remove options and their values from a command line."""
    rest = list(words)
    for option in options:
        i = rest.index(option)
        del rest[i : i + 2]
    return rest


def total(calls, makes):
    return sum(count for kind, count in calls if kind == makes)


def test_a_sweep_samples_representations_once_and_continues(rcg, models, words, counted):
    code, output, error = rcg(*words, "--guidance", "1,2.5", "--batch_size", 16)
    assert code == 0, error
    assert (total(counted, "representation"), total(counted, "image")) == (40, 80)
    assert "best by fd: guidance" in output
    sweep = json.loads((models / "sweep" / "sweep.json").read_text())
    assert [row["setting"] for row in sweep["rows"]] == [{"guidance": 1.0}, {"guidance": 2.5}]
    assert sweep["rows"][0]["metrics"] != sweep["rows"][1]["metrics"]
    assert {"guidance.png", "guidance_fd_is.png", "guidance_precision_recall.png", "sweep.md"} <= {
        path.name for path in (models / "sweep").iterdir()
    }
    events = EventAccumulator(str(models / "sweep")).Reload()
    assert set(events.Tags()["images"]) == {f"sweep/guidance{name}" for name in ("", "_fd_is", "_precision_recall")}

    counted.clear()  # with one more value only the new one is sampled, on the same representations
    code, output, _ = rcg(*words, "--guidance", "1,2.5,4", "--batch_size", 64)
    assert (code, counted) == (0, [("image", 40)])
    assert output.count("scored before") == 2
    again = json.loads((models / "sweep" / "sweep.json").read_text())
    assert again["rows"][:2] == sweep["rows"]


def test_metrics_equal_those_of_evaluate(rcg, models, words):
    assert rcg(*words, "--guidance", "2.5", "--steps", 3)[0] == 0
    metrics = json.loads((models / "sweep" / "sweep.json").read_text())["rows"][0]["metrics"][0]
    common = words[words.index("--prior") : words.index("--out")]
    out = ["--out", models / "metrics.json", "--guidance", 2.5]
    steps = ["--sampler", "DDIM", "--sampler.steps", 3]
    code, _, error = rcg("evaluate", "--samples", models / "generator.ckpt", *common, *out, *steps)
    assert code == 0, error
    evaluated = json.loads((models / "metrics.json").read_text())
    named = evaluated.get("metrics", evaluated)
    assert named["fd/classifier_40_train"] == pytest.approx(metrics["fd"], rel=1e-9)
    assert named["is/classifier_40"] == pytest.approx(metrics["is"], rel=1e-9)


def test_every_setting_changes_the_samples(rcg, models, words, counted):
    axes = ["--guidance", "1,3", "--steps", "4,2", "--eta", "0,1", "--ema", "short,long,trained"]
    heat = ["--temperature", "1,0.5", "--prior_temperature", "1,0.2"]
    code, output, error = rcg(*words, *axes, *heat, "--crossed", "false", "--by", "is")
    assert code == 0, error
    rows = json.loads((models / "sweep" / "sweep.json").read_text())["rows"]
    assert len(rows) == 1 + 7  # the generator's own settings, and each other value alone
    assert len({row["metrics"][0]["fd"] for row in rows}) == 8
    assert total(counted, "representation") == 2 * 40  # the RDM's own temperature and the other
    assert len(list((models / "sweep" / "representations").iterdir())) == 2
    assert "best by is: guidance" in output
    assert (models / "sweep" / "ema.png").is_file()


def test_seeds_give_error_bars_on_other_samples(rcg, models, words, counted):
    assert rcg(*words, "--temperature", "1,0.7", "--seeds", 2)[0] == 0
    rows = json.loads((models / "sweep" / "sweep.json").read_text())["rows"]
    assert all(len({metrics["fd"] for metrics in row["metrics"]}) == 2 for row in rows)
    assert (total(counted, "representation"), total(counted, "image")) == (80, 160)
    assert "±" in (models / "sweep" / "sweep.md").read_text()


def test_all_metrics_against_statistics_are_named_as_evaluate_names_them(rcg, models, words):
    train = Reference.measure(
        real_images(ImageDataModule(Digits(limit=128)), "train"), None, extractor_at(models)
    ).train
    arrays = {"mu": train.moments.mean, "sigma": train.moments.covariance, "arr_0": train.images.permute(0, 2, 3, 1)}
    np.savez(models / "batch.npz", **{name: value.numpy() for name, value in arrays.items()})
    words = without(words, "--data.source", "--data.source.limit")
    more = ["--statistics", models / "batch.npz", "--all", "true", "--reference", models / "cache"]
    code, _, error = rcg(*words, *more, "--guidance", "2", "--by", "kd")
    assert code == 0, error
    sweep = json.loads((models / "sweep" / "sweep.json").read_text())
    assert {"kd", "density", "coverage", "precision"} <= sweep["rows"][0]["metrics"][0].keys()
    assert sweep["names"]["fd"] == "fd/classifier_40_statistics"
    assert sweep["protocol"]["reference"]["file"] == "batch.npz"
    (stored,) = (models / "cache").iterdir()  # the features of the images in the file are computed once
    assert stored.name.startswith("statistics-classifier-")
    common = [word for word in words[1:] if word != "--checkpoint"]
    checkpoint = common.pop(0)
    out = ["--out", models / "metrics.json"]
    code, _, error = rcg("evaluate", "--samples", checkpoint, *common[:-2], *more, "--guidance", 2, *out)
    assert code == 0, error
    metrics = json.loads((models / "metrics.json").read_text())["metrics"]
    assert metrics == {sweep["names"][kind]: value for kind, value in sweep["rows"][0]["metrics"][0].items()}


def test_two_processes_sweep_as_one(rcg, models, words):
    settings = ["--guidance", "1,2.5", "--intervals", "0-1,0.3-0.6", "--prior_temperature", "1,0.5", "--seeds", 2]
    settings += ["--crossed", "false"]
    assert rcg(*words, *settings)[0] == 0
    alone = json.loads((models / "sweep" / "sweep.json").read_text())
    accelerator = words.index("--accelerator")
    pair = [*words[:accelerator], *words[accelerator + 2 : -1], models / "pair", *settings]
    assert rcg_process.pair(pair, models) == [0, 0], (models / "output.txt").read_text()
    together = json.loads((models / "pair" / "sweep.json").read_text())
    assert [row["setting"] for row in together["rows"]] == [row["setting"] for row in alone["rows"]]
    assert len(alone["rows"]) == 4
    for one, two in zip(alone["rows"], together["rows"]):
        for mine, theirs in zip(one["metrics"], two["metrics"]):
            assert mine == pytest.approx(theirs, rel=1e-6)
    assert (models / "output.txt").read_text().count("best by fd") == 1
    assert (models / "pair" / "interval.png").is_file()


def test_conditions_from_a_store_or_none_at_all(rcg, models, words, digits):
    digits(models)
    rest = words[words.index("--prior") + 2 :]
    stored = ["--checkpoint", models / "generator.ckpt", "--representations", models / "eval-encoder-1"]
    assert rcg("sweep", *stored, *rest, "--guidance", 2)[0] == 0
    assert rcg("sweep", "--checkpoint", models / "none.ckpt", *rest, "--steps", "2,4")[0] == 0
    assert len(json.loads((models / "sweep" / "scored.json").read_text())) == 3


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ([], "nothing to sweep"),
        (["--ema", "short,middle"], "no EMA weights 'middle': this generator has short, long, trained"),
        (["--steps", "4,0"], "--steps[1] should be in [1, 1000000], not 0"),
        (["--temperature=-1"], "--temperature[0] should be at least 0, not -1"),
        (["--guidance", "2", "--by", "kid"], "'kid' was not measured"),
        (["--eta", "1", "--sampler", "Ancestral"], "Ancestral has no eta"),
        (["--guidance", "2", "--number", "1"], "--number should be in [2, 1000000000], not 1"),
        (["--intervals", "0.2"], "0-1,0.2-0.8, not 0.2"),
        (["--guidance", "2", "--protocol", "adm-265"], "did you mean adm-256?"),
        (["--guidance", "2", "--balanced", "true"], "classes were requested"),
    ],
)
def test_impossible_sweeps_are_rejected(raised, words, more, line):
    assert line in raised(*words, *more)


def test_other_mistakes_are_rejected(raised, models, words):
    none = ["--checkpoint", models / "none.ckpt"]
    rest = words[words.index("--prior") + 2 :]
    assert "Ancestral has no eta" in raised("sweep", *none, *rest, "--eta", "0,1")
    assert "cannot be guided" in raised("sweep", *none, *rest, "--guidance", "1,2")
    assert "--prior_temperature belongs to the RDM" in raised("sweep", *none, *rest, "--prior_temperature", "0.5")
    assert "not images" in raised("sweep", "--checkpoint", models / "rdm.ckpt", *rest, "--steps", "2")


@pytest.mark.parametrize("content", ["{", "", "[]", '{"a": 1}', '{"a": {"metrics": {"fd": "low"}}}'])
def test_damaged_scores_are_set_aside(tmp_path, content, caplog):
    path = tmp_path / "scored.json"
    path.write_text(content)
    cache = ScoreCache(path)
    assert "scored.json is damaged" in caplog.text
    cache.add("key", {"metrics": {"fd": 1.0}})
    assert ScoreCache(path).records == {"key": {"metrics": {"fd": 1.0}}}
    assert (tmp_path / "scored.json.damaged").read_text() == content


def test_a_variant_leaves_other_settings_unchanged():
    sampler = DDIM(7, spacing=LinspaceSpacing(), clip=1.0)
    changed = variant(sampler, {"steps": 3, "temperature": 0.5})
    assert (changed.steps, changed.eta, changed.clip, changed.temperature) == (3, 0.0, 1.0, 0.5)
    assert isinstance(changed.spacing, LinspaceSpacing)
    assert plain_settings(sampler) == {"steps": 7, "eta": 0.0, "clip": 1.0, "temperature": 1.0}
    with pytest.raises(UserError, match="Ancestral has no eta"):
        variant(Ancestral(), {"eta": 1.0})


def test_settings_are_crossed_or_varied_one_by_one():
    axes, own = {"guidance": [1.0, 2.0], "steps": [5, 10]}, {"guidance": 1.0, "steps": 10}
    assert len(settings_of(axes, own, crossed=True)) == 4
    assert settings_of(axes, own, crossed=False) == [
        {"guidance": 1.0, "steps": 10},
        {"guidance": 2.0, "steps": 10},
        {"guidance": 1.0, "steps": 5},
    ]


def test_a_class_conditional_prior_samples_every_class(models, tmp_path):
    loaded = Loaded(Generator.load(models / "generator.ckpt"), Generator.load(models / "rdm_class.ckpt"))
    asked = SampleRequest(20, 0, 1, 20, "32-true")
    one, other = (SweepSampling(loaded, asked, tmp_path / "out", balanced=flag) for flag in (True, False))
    conditions = [sampling.seeds({}, 0).dataset.carried["representation"] for sampling in (one, other)]
    assert not torch.equal(*conditions)
    expected = loaded.prior.sample({"seed": torch.arange(20), "label": torch.arange(20) % 10})
    torch.testing.assert_close(conditions[0], expected)

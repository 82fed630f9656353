"""Every experiment's config: parsed, built at full size on the meta device, and run for one step."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from helpers.offline import CLASSES, ON_CPU, data_of, latent_of
from rcg_lightning.cli import main as cli
from rcg_lightning.cli import stages
from rcg_lightning.cli.parsing import call
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.step_guard import StepGuard
from rcg_lightning.types import DataSpec

ROOT = Path(__file__).parents[2]
NO_DATA_SET = ("pipeline", "preset", "source", "encoder", "codec")
EXPERIMENTS = {
    f"{path.parent.name}/{path.stem}": path
    for path in sorted((ROOT / "configs").glob("*/*.yaml"))
    if path.parent.name not in NO_DATA_SET
}
TRAINED = [name for name, path in EXPERIMENTS.items() if "model" in yaml.safe_load(path.read_text())]
# words of a config that reads a store
STORED = ("RepresentationCondition", "InstanceCondition", "codec: Representations", "Latents\n", "codec: VQTokens")
DATA_ONLY = [name for name in EXPERIMENTS if name.endswith("data")]
SPEC = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "folder": ((3, 64, 64), None),
    "imagenet64": ((3, 64, 64), 1000),
    "imagenet128": ((3, 128, 128), 1000),
    "imagenet256": ((3, 256, 256), 1000),
    "imagenetlt64": ((3, 64, 64), 1000),
    "coco128": ((3, 128, 128), None),
    "coco256": ((3, 256, 256), None),
    "inaturalist": ((3, 256, 256), 10000),
    "mirflickr": ((3, 256, 256), None),
}
SMALL_UNET = [
    "--data.batch_size=2",
    *(f"--model.denoiser.network.{size}" for size in ("width=32", "depth=1", "head_width=32", "groups=8")),
]
SMALL_MAGE = [f"--model.transformer.{size}" for size in ("width=48", "depth=1", "decoder_width=48", "decoder_depth=1")]
SMALL_BIGGAN = [
    *(f"--model.{role}.{size}" for role in ("generator", "discriminator") for size in ("channels=4", "attention=[16]")),
    "--model.tile=8",
]
# with two conditions each has half of the discriminator's width
SMALL_JOINT_BIGGAN = [*SMALL_BIGGAN, "--model.discriminator_conditioner.dim=[8,8]"]
SMALL_STYLEGAN2 = [
    *(
        f"--model.{role}.{size}"
        for role in ("generator", "discriminator")
        for size in ("channel_base=512", "channel_max=16")
    ),
    "--model.tile=8",
]
WITHOUT_WEIGHTS = [
    "--model.perceptual=null",
    "--trainer.callbacks=null",
]  # the weights of LPIPS and Inception are missing offline
# configs that are too slow at full width on a CPU; another test builds the full size on the meta device
SMALLER = {
    "cifar10/encoder": ["--data.batch_size=4"],
    "folder/encoder": ["--data.batch_size=2"],
    "imagenet256/moco_b": [
        "--data.batch_size=2",
        *("--model.encoder.backbone.width=48", "--model.encoder.backbone.depth=1"),
        *("--model.encoder.head.in_dim=48", "--model.encoder.head.hidden=64", "--model.predictor.hidden=64"),
    ],
    "imagenet256/rdm": ["--model.denoiser.network.width=64"],
    "imagenet256/rdm_class": ["--model.denoiser.network.width=64"],
    "imagenet256/rdm_online": ["--model.denoiser.network.width=64"],
    "cifar10/generator": ["--model.denoiser.network.depth=2"],
    "folder/generator": ["--model.denoiser.network.depth=2"],
    "imagenet64/dit_rep": ["--model.denoiser.network.depth=1"],
    "mnist/unet": ["--model.denoiser.network.width=32"],
    "cifar10/unet": SMALL_UNET,
    "cifar10/paper": SMALL_UNET,
    "imagenet256/adm_rep": SMALL_UNET,
    "imagenet256/adm_joint": SMALL_UNET,
    "imagenet256/ldm_rep": SMALL_UNET,
    "imagenet256/ldm_joint": SMALL_UNET,
    "imagenet256/dit_rep": ["--model.denoiser.network.width=64", "--model.denoiser.network.depth=1"],
    "imagenet256/dit_joint": ["--model.denoiser.network.width=64", "--model.denoiser.network.depth=1"],
    **{name: SMALL_BIGGAN for name in TRAINED if name.endswith("/icgan")},
    **{name: SMALL_JOINT_BIGGAN for name in TRAINED if name.endswith("/icgan_class") and name[:6] != "digits"},
    "cifar10/gan": SMALL_BIGGAN,
    "mnist/cgan": ["--data.source.validation_size=10"],
    "mnist/gan2014": ["--data.source.validation_size=10"],
    "coco256/icgan_stylegan2": SMALL_STYLEGAN2,
    **{name: SMALL_MAGE for name in TRAINED if "/mage_" in name},
    "cifar10/mage": ["--model.transformer.depth=1"],
    "cifar10/tokenizer": ["--data.batch_size=4", "--model.network.blocks=1", *WITHOUT_WEIGHTS],
    "imagenet256/tokenizer": [
        *("--data.batch_size=1", "--model.network.width=8", "--model.network.groups=8"),
        *WITHOUT_WEIGHTS,
    ],
}


class Read(Exception):
    """Carries the parsed config."""


def read(name, monkeypatch):
    """Return a config as `rcg fit` parses it, before any object is built."""

    def stop(self):
        raise Read(vars(self.config.fit))

    with monkeypatch.context() as patched:
        patched.setattr(stages.StageCLI, "instantiate_classes", stop)
        with pytest.raises(Read) as caught:
            cli.run("fit", ["--config", name])
    return caught.value.args[0]


def full_size(name, config):
    """Return the stage of a config with all its networks, on the meta device."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Stage)
    image, classes = SPEC[name.partition("/")[0]]
    transform = config["data"].init_args.transform
    if transform is not None:
        image = (image[0], transform.init_args.size, transform.init_args.size)
    columns = {"representation": {"shape": [256]}, "cluster": {"count": 10, "sizes": [1] * 10}}
    columns["latent"] = latent_of(name) or {"shape": [1]}
    columns["tokens"] = {"shape": [256], "count": 1024}
    columns |= {"tag": {"shape": [], "count": 50}, "word": {"shape": [200]}}
    columns["instance"] = {"shape": [2048]}
    columns["alignment"] = {"shape": [64]}  # of an encoder whose weights are missing offline
    with torch.device("meta"):
        stage = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
        if name.endswith("_online"):
            stage.codec.encoder._properties.update(dim=256, identity="it")  # its weights are missing offline
        return stage.build(DataSpec(image, classes, columns, {"alignment": "it"}))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_config_is_short_and_starts_with_a_description(name):
    lines = EXPERIMENTS[name].read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("# ")


def test_configs_are_shipped_in_the_wheel():
    assert 'configs = "rcg_lightning/configs"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", TRAINED)
def test_the_full_size_is_built_from_spec(name, monkeypatch):
    config = read(name, monkeypatch)
    stage = full_size(name, config)
    assert all(parameter.is_meta for parameter in stage.parameters())
    stage.optimizer.make(stage.trained_modules(), config["trainer"].max_steps)


@pytest.mark.parametrize("name", TRAINED)
def test_one_step_is_trained_and_validated(name, data_options, stores, offline, monkeypatch, tmp_path):
    stages, idle, check, finish_step = [], [], StepGuard.check, Stage.finish_step

    def look(guard, optimizer, *args):  # after the backward pass, before each network's update
        idle.extend(p for group in optimizer.param_groups for p in group["params"] if p.grad is None)
        return check(guard, optimizer, *args)

    monkeypatch.setattr(StepGuard, "check", look)
    monkeypatch.setattr(Stage, "finish_step", lambda stage: (stages.append(stage), finish_step(stage)))
    words = ["--data.batch_size=8", *data_options(name), *SMALLER.get(name, [])]
    if name.endswith("_online"):
        words += [f"--model.codec.encoder.weights={offline / 'vit.pth.tar'}", "--model.codec.encoder.heads=12"]
    elif name.endswith("/repa"):
        words += [f"--model.alignment.encoder.folder={offline / 'encoder'}"]
    elif name.endswith("/tags"):
        words += [*stores(name), f"--model.codec.vectors={offline / 'words.txt'}"]
    elif any(column in EXPERIMENTS[name].read_text() for column in STORED):
        words += stores(name)
    words += [*ON_CPU, "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert cli.main(["fit", "--config", name, *words]) == 0
    (stage,) = stages
    assert not idle  # or several processes would wait for a gradient that never comes
    metrics = stage.trainer.callback_metrics
    assert math.isfinite(metrics["train/loss"])
    assert any(metric.startswith("val/") for metric in metrics)


@pytest.mark.parametrize("condition", ["NoCondition", "ClassCondition", "ClusterCondition", "RepresentationCondition"])
@pytest.mark.parametrize("name", ["digits/dit", "digits/unet", "digits/latent", "digits/mage", "cifar10/generator"])
def test_a_generator_takes_every_condition_by_override(name, condition, data_options, stores, tmp_path):
    words = [*ON_CPU, "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    network = "transformer" if name.endswith("/mage") else "denoiser.network"
    words += [f"--model.condition={condition}", "--data.batch_size=8", f"--model.{network}.depth=1"]
    assert cli.main(["fit", "--config", name, *data_options(name), *stores(name), *words]) == 0


@pytest.mark.parametrize("name", DATA_ONLY)
def test_data_alone_can_be_given_to_a_command(name, data_options):
    spec = call(data_of, "data", ["--config", name, *data_options(name)]).spec
    image, classes = SPEC[name.partition("/")[0]]
    assert (spec.image, spec.classes) == (
        image,
        len(CLASSES) if name.startswith(("inaturalist", "imagenet")) else classes,
    )


@pytest.mark.parametrize(("name", "condition"), [("imagenet256/rdm", 0), ("imagenet256/rdm_class", 512)])
def test_the_rdm_for_vit_b_has_the_official_sizes(name, condition, monkeypatch):
    stage = full_size(name, read(name, monkeypatch))
    network = stage.denoiser.network
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == (72 if condition else 63)
    assert network.time_embed[0].weight.shape == (256, 1536)
    assert network.blocks[11].in_linear.weight.shape == (1536, 1536)
    if condition:
        assert network.blocks[11].condition.weight.shape == (1536, condition)
        assert stage.conditioner.parts[0].table.weight.shape == (1000, condition)
    ema_names = stage.ema.averaged()
    assert "conditioner" not in ema_names
    assert len(list(ema_names["network"].parameters())) == len(list(network.parameters()))

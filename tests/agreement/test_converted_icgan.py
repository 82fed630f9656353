"""IC-GAN's files converted and loaded from their folder, compared with the recorded results."""

import re
import shutil

import pytest
import torch
from test_converted import check_same_folders

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.core.adversarial import Hinge, Logistic
from rcg_lightning.errors import UserError
from rcg_lightning.official.base import OfficialFile
from rcg_lightning.official.conversion import read_official, to_native, to_official
from rcg_lightning.official.tensor_report import report_tensors
from rcg_lightning.stages.generator import TRAINED, Generator
from rcg_lightning.stages.stage_folder import stage_content

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
biggan = pytest.mark.golden("icgan_biggan", "cc_icgan_biggan")
stylegan2 = pytest.mark.golden("icgan_stylegan2")


def convert(source, out, kind=None):
    """Return the stage of an official file or folder, and the report on it."""
    report = "\n".join(to_native(source, out, kind))
    assert "unknown" not in report
    return Generator.load(out), report


def raw(stage, io, which):
    """The recorded condition ``which``: g or real."""
    named = {"label": io.get(f"in.y_{which}"), "instance": io.get(f"in.feat_{which}")}
    return tuple(named[need] for need in ("label", "instance") if need in stage.condition.needs)


@biggan
@torch.no_grad()
def test_biggan_as_a_folder(golden, tmp_path):
    stage, output = convert(golden.folder, tmp_path / "native")
    io, kwargs = golden.io, golden.config["kwargs"]
    assert re.search(r"missing +none", output)
    conditions = [type(each) for each in getattr(stage.condition, "conditions", [stage.condition])]
    assert conditions == ([ClassCondition] if kwargs["class_cond"] else []) + [InstanceCondition]
    assert stage.spec.classes == (kwargs["n_classes"] if kwargs["class_cond"] else None)
    assert (stage.generator.channels, stage.discriminator.channels) == (kwargs["G_ch"], kwargs["D_ch"])
    assert stage.generator.noise_dim == golden.config["effective_dim_z"]
    stage.eval()
    condition = raw(stage, io, "g")
    for ema_name, name in ((TRAINED, "out.eval.G"), (None, "out.eval.G_ema")):
        generator, conditioner = stage.for_sampling(ema_name)
        made = generator(io["in.z"], conditioner(condition, len(io["in.z"])))
        torch.testing.assert_close(made, io[name], **CLOSE)
    for images, which, name in ((io["out.eval.G"], "g", "D_fake"), (io["in.x_real"], "real", "D_real")):
        logits = stage.discriminate(images, raw(stage, io, which), len(images))
        torch.testing.assert_close(logits[:, None], io[f"out.eval.{name}"], **CLOSE)


@biggan
def test_settings_are_the_published_ones(golden, tmp_path):
    stage, _ = convert(golden.folder, tmp_path / "native")
    assert isinstance(stage.loss, Hinge)
    for optimizer in (stage.optimizer, stage.discriminator_optimizer):
        assert (tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay) == ((0.0, 0.999), 1e-6, 0.0)
    assert (stage.ema.decays, stage.ema.start, stage.ema.buffers_too) == ({"ema": 0.9999}, 20000, True)
    assert stage.ema.updates == 20000  # continued training updates the EMA weights instead of starting them again


@biggan
def test_biggan_is_written_back_and_converted_again(golden, tmp_path):
    convert(golden.folder, tmp_path / "native")
    to_official(tmp_path / "native", tmp_path / "back")
    for name in ("G", "G_ema", "D"):
        first = torch.load(golden.folder / f"{name}.pth", weights_only=True)
        back = torch.load(tmp_path / "back" / f"{name}.pth", weights_only=True)
        assert first.keys() == back.keys()
        unread = set() if golden.config["kwargs"]["class_cond"] else {"shared.weight"}
        assert all(torch.equal(first[key], back[key]) for key in first.keys() - unread)
    convert(tmp_path / "back", tmp_path / "again")
    check_same_folders(tmp_path / "native", tmp_path / "again")


@biggan
def test_a_generator_alone_suffices_for_sampling(golden, tmp_path):
    stage, output = convert(golden.folder / "G_ema.pth", tmp_path / "native")
    assert "G: the other one is used instead" in output
    assert "D: a fresh discriminator is used instead" in output
    io = golden.io
    generator, conditioner = stage.for_sampling()
    with torch.no_grad():
        made = generator(io["in.z"], conditioner(raw(stage, io, "g"), len(io["in.z"])))
        torch.testing.assert_close(made, io["out.eval.G_ema"], **CLOSE)
        condition, n = raw(stage, io, "real"), len(io["in.z"])
        assert stage.eval().discriminate(io["in.x_real"], condition, n).isfinite().all()
    batch = {"seed": torch.arange(3), "instance": io["in.feat_g"][:3], "label": torch.zeros(3, dtype=torch.int64)}
    image = stage.sample(batch)
    assert image.shape == (3, *stage.spec.image)
    assert 0 <= image.min() < image.max() <= 1


@biggan
def test_wrong_folders_and_conditions_are_rejected(golden, tmp_path):
    native = tmp_path / "native"
    with pytest.raises(UserError, match="discriminator makes no images: give its generator"):
        convert(golden.folder / "D.pth", native)
    shutil.copytree(golden.folder, tmp_path / "best", ignore=lambda *_: ["io.safetensors"])
    for name in ("G", "G_ema", "D"):
        (tmp_path / "best" / f"{name}.pth").rename(tmp_path / "best" / f"{name}_best0.pth")
    convert(tmp_path / "best", native)
    shutil.copy(golden.folder / "G.pth", tmp_path / "best" / "G_best1.pth")
    with pytest.raises(UserError, match="holds several models"):
        read_official(tmp_path / "best")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"holds nothing, and no official model: .*D\.pth, G\.pth, G_ema\.pth"):
        read_official(tmp_path / "nothing")
    classes = JointCondition([ClassCondition(), InstanceCondition()])
    other = InstanceCondition() if golden.config["kwargs"]["class_cond"] else classes
    with pytest.raises(UserError, match="blocks are conditioned on"):
        convert(golden.folder, native, OfficialFile.kinds()["icgan"](other))
    state = torch.load(golden.folder / "G.pth", weights_only=True)
    torch.save({name: tensor for name, tensor in state.items() if name != "linear.weight"}, tmp_path / "G.pth")
    with pytest.raises(UserError, match=r"incomplete: linear\.weight is missing"):
        convert(tmp_path / "G.pth", native)


@pytest.mark.parametrize("size", ["", "halfcap_"])
@pytest.mark.parametrize("kind", ["icgan", "cc_icgan"])
@pytest.mark.parametrize("roles", ["GD", "G"])
def test_full_size_files_are_converted_tensor_by_tensor(manifest, kind, size, roles):
    """The whole conversion except writing, without memory."""
    files = {role: manifest(f"{kind}_{size}biggan_res256_{role}") for role in roles}
    content = {**files, "G_ema": {name: tensor.clone() for name, tensor in files["G"].items()}}
    found = OfficialFile.of(content, "it")
    part = found.parts(content, "it")["generator"]
    assert part.missing == (
        () if "D" in roles else ("D: a fresh discriminator is used instead, samples do not need one",)
    )
    report = report_tensors(content, part.used.values(), found.ignored, part.changed)
    assert not report.unknown
    ignored = [name for names in report.ignored.values() for name in names]
    assert ignored == ([] if kind == "cc_icgan" else ["G.shared.weight", "G_ema.shared.weight"])
    assert len(report.mapped) + len(ignored) == sum(map(len, content.values()))
    stage = part.stage
    assert stage.spec.image == (3, 256, 256)
    assert stage.spec.classes == (1000 if kind == "cc_icgan" else None)
    half = bool(size)
    assert (stage.generator.channels, stage.discriminator.channels) == ((64, 64) if half else (96, 96))
    assert (stage.generator.attention, stage.discriminator.attention) == ([64], [64])
    assert (stage.optimizer.lr, stage.discriminator_optimizer.lr) == ((1e-4, 1e-4) if half else (4e-5, 1e-4))


@stylegan2
@torch.no_grad()
def test_stylegan2_from_state_dicts(golden, tmp_path):
    stage, output = convert(golden.checkpoint, tmp_path / "native")
    io = golden.io
    assert "G_ema: the other one is used instead" in output
    assert "the low-pass filter" in output
    assert isinstance(stage.loss, Logistic)
    stage.eval()
    settings = golden.config["G"]
    condition = (io["in.c"].argmax(1),) if settings["c_dim"] else ()
    condition = (*condition, io["in.h"]) if settings["h_dim"] else condition
    for ema_name in (TRAINED, None):
        generator, conditioner = stage.for_sampling(ema_name)
        c = conditioner(condition, len(io["in.z"]))
        torch.testing.assert_close(generator.styles(io["in.z"], c), io["out.ws"], **CLOSE)
        torch.testing.assert_close(generator(io["in.z"], c), io["out.img_noise_const"], **CLOSE)
    for images, name in ((io["out.img_noise_const"], "D_of_img"), (io["in.x"], "D_of_x")):
        torch.testing.assert_close(
            stage.discriminate(images, condition, len(images))[:, None], io[f"out.{name}"], **CLOSE
        )
    with pytest.raises(UserError, match="has no official layout"):
        to_official(tmp_path / "native", tmp_path / "back")


@stylegan2
def test_a_stylegan2_with_classes_and_without_a_discriminator(golden, tmp_path):
    """The recorded file may have no classes: a linear map of classes is added to that of its instances."""
    network, settings = torch.load(golden.checkpoint, weights_only=True)["G"], golden.config["G"]
    width, classes = len(network["mapping.w_avg"]), settings["c_dim"] or 7
    if not settings["c_dim"]:
        fc0 = network["mapping.fc0.weight"]
        network |= {"mapping.embed.weight": torch.randn(width, classes), "mapping.embed.bias": torch.randn(width)}
        network["mapping.fc0.weight"] = torch.cat([fc0, torch.randn(len(fc0), width)], 1)
    torch.save({"G_ema": network}, tmp_path / "networks.pth")
    stage, output = convert(tmp_path / "networks.pth", tmp_path / "native")
    assert "a table of its rows here" in output
    assert stage.spec.classes == classes
    batch = {"seed": torch.arange(2), "label": torch.tensor([0, classes - 1])}
    if settings["h_dim"]:
        batch["instance"] = torch.randn(2, stage.spec.columns["instance"]["shape"][0])
    assert stage.sample(batch).isfinite().all()
    assert stage_content(tmp_path / "native")["state_dict"]["discriminator.out_linear.weight"].any()

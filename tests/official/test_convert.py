"""`rcg convert`, `rcg bundle` and `--init-from` from the command line: files, reports and rejections."""

import argparse
import collections
import json
import pickle

import pytest
import torch

from helpers.autoencoders import save_kl
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import Clean, Noise
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.core.schedule import LinearSchedule, ScaledLinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.official.base import OfficialFile
from rcg_lightning.pretrained.codecs import KLLatents, Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import bundle_parts, stage_content
from rcg_lightning.types import DataSpec

pytestmark = pytest.mark.slow

DIM = 8  # of a representation


@pytest.fixture
def rdm(make_stage, awake, save, tmp_path):
    """The checkpoint of an RDM as published, but small."""

    def make(condition=None, name="rdm.ckpt", identity=None):
        stage = make_stage(
            condition or NoCondition(),
            codec=Representations(),
            denoiser=Denoiser(ResidualMLP(16, 2, 12, 20), ScaledLinearSchedule(), Clean()),
            conditioner=Conditioner(dim=10 if condition else None, drop=0.0),
            sampler=DDIM(4, 1.0, OffsetSpacing()),
            ema=EMA(0.999, warmup=True),
            ema_conditioner=False,
        )
        identities = {"representation": identity} if identity else {}
        spec = DataSpec((1, 8, 8), 5, {"representation": {"shape": [DIM]}}, identities)
        return save(awake(stage.build(spec)), tmp_path / name)

    return make


@pytest.fixture
def generator(make_stage, awake, save, tmp_path):
    """The checkpoint of a small image generator conditioned on representations."""

    def make(identity=None):
        denoiser = Denoiser(DiT(4, 16, 1, 2), LinearSchedule(100), Noise(), learned_variance=True)
        stage = make_stage(RepresentationCondition(), denoiser=denoiser)
        identities = {"representation": identity} if identity else {}
        spec = DataSpec((3, 8, 8), None, {"representation": {"shape": [DIM]}}, identities)
        return save(awake(stage.build(spec)), tmp_path / "generator.ckpt")

    return make


@pytest.fixture
def encoder(tmp_path):
    """The folder of a small MoCo v3 encoder."""
    backbone = VisionTransformer(image_size=32, width=24, depth=1, heads=2)
    network = Projected(backbone, ProjectionHead(24, 12, DIM))
    save_network(tmp_path / "encoder", network, encoder_settings(Preprocess(size=32)))
    return tmp_path / "encoder"


def official(path):
    return torch.load(path, weights_only=True)


def test_an_rdm_is_exported_and_converted_back(rcg, rdm, tmp_path):
    native, file = rdm(ClassCondition()), tmp_path / "rdm.pth"
    code, output, _ = rcg("convert", "--to", "official", "--from", native, "--out", file)
    assert code == 0
    assert f"{file}: an RDM checkpoint" in output
    assert official(file)["model"]["cond_stage_model.embedding.weight"].shape == (5, 10)
    code, output, _ = rcg("convert", "--from", file, "--out", tmp_path / "again")
    assert code == 0
    assert "mapped      model.model.*" in output
    assert "ignored" in output
    assert "tables of the noise schedule" in output
    assert "missing     none" in output
    assert "unknown" not in output
    first, again = (stage_content(path)["state_dict"] for path in (native, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    stage = Generator.load(tmp_path / "again")
    assert stage.ema.decays == {"ema": 0.999}
    assert stage.spec.classes == 5


def test_a_converted_model_samples(rcg, rdm, tmp_path):
    rcg("convert", "--to", "official", "--from", rdm(), "--out", tmp_path / "rdm.pth")
    assert rcg("convert", "--from", tmp_path / "rdm.pth", "--out", tmp_path / "rdm")[0] == 0
    quick = ["--sampler", "DDIM", "--sampler.steps", 3, "--number", 4, "--accelerator", "cpu"]
    code, output, _ = rcg("sample", "--checkpoint", tmp_path / "rdm", *quick, "--out", tmp_path / "out")
    assert code == 0
    assert "a store of 4 representations" in output


def test_an_encoder_is_exported_and_converted_back(rcg, encoder, tmp_path):
    assert rcg("convert", "--to", "official", "--from", encoder, "--out", tmp_path / "moco.pth")[0] == 0
    assert all(name.startswith("module.base_encoder.") for name in official(tmp_path / "moco.pth")["state_dict"])
    arguments = ["convert", "--from", tmp_path / "moco.pth", "--kind", "MoCoV3", "--kind.heads", 2]
    assert rcg(*arguments, "--out", tmp_path / "again")[0] == 0
    images = torch.rand(2, 3, 40, 40)
    one, other = TrainedEncoder(encoder), TrainedEncoder(tmp_path / "again")
    assert torch.equal(one(images), other(images))


def test_a_bundle_samples_by_itself(rcg, generator, rdm, encoder, tmp_path):
    identity = TrainedEncoder(encoder).identity
    parts = ["--generator", generator(identity), "--prior", rdm(identity=identity), "--encoder", encoder]
    code, output, _ = rcg("bundle", *parts, "--out", tmp_path / "rcg")
    assert code == 0
    assert "a bundle of generator, prior, encoder" in output
    assert set(bundle_parts(tmp_path / "rcg")) == {"generator", "prior", "encoder"}
    arguments = ["--number", 4, "--accelerator", "cpu"]
    assert rcg("sample", "--checkpoint", tmp_path / "rcg", *arguments, "--out", tmp_path / "one")[0] == 0
    files = ["--checkpoint", tmp_path / "generator.ckpt", "--prior", tmp_path / "rdm.ckpt"]
    assert rcg("sample", *files, *arguments, "--out", tmp_path / "two")[0] == 0
    one, two = ((tmp_path / name / "png" / "000003-seed3.png").read_bytes() for name in ("one", "two"))
    assert one == two
    seeds = {"seed": torch.arange(2)}
    assert torch.equal(Generator.load(tmp_path / "rcg").sample(seeds), Generator.load(tmp_path / "rcg").sample(seeds))
    # a bundle also gives its prior to another generator
    files[-1] = tmp_path / "rcg"
    assert rcg("sample", *files, *arguments, "--out", tmp_path / "three")[0] == 0
    assert (tmp_path / "three" / "png" / "000003-seed3.png").read_bytes() == one


def test_a_bundle_with_a_kl_autoencoder(rcg, make_stage, awake, save, tmp_path):
    pytest.importorskip("diffusers")
    denoiser = Denoiser(DiT(4, 16, 1, 2), LinearSchedule(100), Noise(), learned_variance=True)
    stage = make_stage(codec=KLLatents(), denoiser=denoiser)
    latent = {"shape": [8, 8, 8], "moments": True}
    generator = save(awake(stage.build(DataSpec((3, 16, 16), None, {"latent": latent}))), tmp_path / "dit.ckpt")
    kl = save_kl(tmp_path / "kl")
    assert rcg("bundle", "--generator", generator, "--autoencoder", kl, "--out", tmp_path / "all")[0] == 0
    made = Generator.load(tmp_path / "all").sample({"seed": torch.arange(2)})
    other = Generator.load(generator)
    other.codec.use_autoencoder(kl)
    assert made.shape == (2, 3, 16, 16)
    assert torch.equal(made, other.sample({"seed": torch.arange(2)}))


def test_parts_of_different_encoders_are_no_bundle(raised, generator, rdm, encoder, tmp_path):
    made = generator("one")
    arguments = ["bundle", "--out", tmp_path / "out", "--generator", made]
    assert "of encoder two" in raised(*arguments, "--prior", rdm(identity="two"))
    assert "generator was trained with one" in raised(*arguments, "--encoder", encoder)
    assert "makes images, not representations" in raised(*arguments, "--prior", made)
    assert "is of no use" in raised(*arguments, "--autoencoder", made)
    assert "holds no autoencoder" in raised(*arguments, "--autoencoder", tmp_path)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert "is not a bundle" in raised(*arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_damaged_folders_are_reported(raised, rcg, rdm, tmp_path):
    rcg("bundle", "--generator", rdm(), "--out", tmp_path / "b")
    arguments = ["sample", "--checkpoint", tmp_path / "b", "--out", tmp_path / "out"]
    weights = tmp_path / "b" / "generator" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "is damaged or was replaced" in raised(*arguments)
    weights.unlink()
    assert "copy the whole folder" in raised(*arguments)
    weights.write_bytes(whole)
    description = tmp_path / "b" / "generator" / "stage.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"format": 99}))
    assert "made by a later version (format 99" in raised(*arguments)
    description.write_text("{")
    assert "is not readable" in raised(*arguments)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_in_a_file_are_never_created(rcg, raised, rdm, tmp_path, legacy):
    file, witness = tmp_path / "rdm.pth", tmp_path / "witness"
    rcg("convert", "--to", "official", "--from", rdm(), "--out", file)
    payload = {"args": Payload(str(witness)), "counts": collections.defaultdict, "more": argparse.Namespace(lr=1)}
    torch.save(official(file) | payload, file, _use_new_zipfile_serialization=not legacy)
    arguments = ["convert", "--from", file, "--out", tmp_path / "out"]
    output = raised(*arguments)
    assert "holds more than weights" in output
    assert "--trust_pickle true reads the weights" in output
    assert not (tmp_path / "out").exists()
    code, output, _ = rcg(*arguments, "--trust-pickle", "true")
    assert code == 0
    assert "left out    io.open, collections.defaultdict" in output
    assert (tmp_path / "out" / "stage.json").is_file()
    assert not witness.exists()


def test_a_system_call_in_a_file_is_always_rejected(raised, tmp_path):
    class Shell:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path}/witness",)

    torch.save({"model": {"w": torch.ones(1)}, "args": Shell()}, tmp_path / "evil.pth")
    arguments = ["convert", "--from", tmp_path / "evil.pth", "--out", tmp_path / "out"]
    assert "posix.system" in raised(*arguments)
    assert "cannot be read" in raised(*arguments, "--trust_pickle", "true")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"args": Shell()}))
    assert "posix.system" in raised(*arguments) or "cannot be read" in raised(*arguments)
    assert not (tmp_path / "witness").exists()
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_reported(raised, rcg, rdm, encoder, tmp_path):
    file = tmp_path / "rdm.pth"
    rcg("convert", "--to", "official", "--from", rdm(), "--out", file)
    arguments = ["convert", "--out", tmp_path / "out", "--from"]
    whole, content = file.read_bytes(), official(file)
    assert "does not exist" in raised(*arguments, tmp_path / "nothing.pth")
    weights = encoder / "weights.safetensors"
    assert "this is no RDM checkpoint" in raised(*arguments, weights, "--kind", "rdm")
    assert "there is no kind gpt" in raised(*arguments, file, "--kind", "gpt")
    assert "it is an RDM checkpoint" in raised(*arguments, file, "--kind", "dit")
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in raised(*arguments, tmp_path / "half.pth")

    def changed(**tensors):
        model = {name: tensor for name, tensor in (content["model"] | tensors).items() if tensor is not None}
        torch.save(content | {"model": model}, tmp_path / "changed.pth")
        return raised(*arguments, tmp_path / "changed.pth")

    bias = "model.diffusion_model.res_blocks.1.in_layers.2.bias"
    ema = "model_ema.diffusion_modelres_blocks1in_layers2bias"
    assert "blocks.1.in_linear.bias" in changed(**{bias: None, ema: None})
    assert "has no EMA weights" in changed(**{ema: None})
    assert "of another shape" in changed(**{bias: torch.zeros(13)})
    assert "has no cond_stage_model" in changed(**{"cond_stage_model.embedding.weight": None})
    assert "noise schedule" in changed(betas=torch.linspace(1e-4, 0.02, 1000))
    torch.save({"weights": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    assert "a file with 1 entries" in raised(*arguments, tmp_path / "other.pth")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_missing_official_layout_is_reported(raised, make_stage, save, tmp_path):
    path = save(make_stage().build(DataSpec((3, 8, 8))), tmp_path / "a.ckpt")
    arguments = ["convert", "--to", "official", "--from", path, "--out", tmp_path / "out.pth"]
    assert "has no official layout" in raised(*arguments)
    assert "no checkpoint at" in raised(*arguments[:4], tmp_path / "nothing", *arguments[5:])
    assert not (tmp_path / "out.pth").exists()


def test_kinds_are_found_without_a_list():
    found = OfficialFile.kinds()
    assert {"mocov3", "dino", "ibot", "deit", "rdm", "dit", "adm"} <= found.keys()
    assert len({kind.description for kind in found.values()}) == len(found)


def test_training_starts_from_other_weights(rcg, raised, tmp_path):
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    small = ["--data.source.limit=256", "--data.batch_size=32", "--model.denoiser.network.width=32"]
    fit = ["fit", "--config", "digits/generator", "--model.condition", "NoCondition", *small, *quiet]
    old, new = tmp_path / "old", tmp_path / "new"
    assert rcg(*fit, "--trainer.max_steps=2", f"--trainer.default_root_dir={old}")[0] == 0
    rcg("bundle", "--generator", old / "last.ckpt", "--out", tmp_path / "bundle")
    again = [*fit, f"--trainer.default_root_dir={new}", "--init-from", tmp_path / "bundle"]
    code, output, _ = rcg(*again, "--trainer.max_steps=1", "--model.optimizer.lr=0")
    assert code == 0
    assert f"starting from {tmp_path}/bundle\n  taken over: " in output
    weights, before = (stage_content(folder / "last.ckpt")["state_dict"] for folder in (new, old))
    assert all(torch.allclose(weights[name], before[name]) for name in before if name.startswith("denoiser."))
    code, output, _ = rcg(*again, "--trainer.max_steps=2", "--ckpt_path", "last")  # a continued run ignores --init-from
    assert code == 0
    assert "taken over" not in output
    assert "no checkpoint at" in raised(*fit, "--init-from", tmp_path / "nothing")
    assert "no training state" in raised(*fit, "--ckpt_path", tmp_path / "bundle")


def test_a_kl_autoencoder_is_used_as_it_is(raised, tmp_path):
    """In diffusers' layout, alone or in a pipeline, and as a file in the original layout."""
    for folder in (tmp_path / "kl", tmp_path / "pipeline" / "vae"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    shapes = {"encoder.conv_in": (8, 3, 3, 3), "quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": state}, tmp_path / "kl.ckpt")
    for source in ("kl", "pipeline", "kl.ckpt"):
        line = raised("convert", "--from", tmp_path / source, "--out", tmp_path / "out")
        assert "is a KL autoencoder" in line
        assert "--autoencoder" in line
    assert not (tmp_path / "out").exists()

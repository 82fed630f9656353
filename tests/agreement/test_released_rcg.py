"""A released RCG from its files to images: converted, bundled, sampled by the name of a preset."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.cli.main import main
from rcg_lightning.config_files import config_folders
from rcg_lightning.pretrained.checkpoints import read_checkpoint

PRESETS = sorted(path.stem for path in (config_folders()[0] / "preset").glob("*.yaml"))


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_by_name(name, capsys):
    assert run("sample", "--config", name, "--checkpoint", "a", "--out", "b", "--print_config") == 0
    output = capsys.readouterr().out
    assert "number: 50000" in output


@pytest.fixture
def bundle(golden, tmp_path, capsys):
    """The bundle of a recorded MAGE and a recorded RDM, whose encoder is replaced by MAGE's."""
    rdm_file = golden.folder.parent / "rdm_uncond" / "checkpoint.pth"
    if "in.fixed.rep" not in golden.io or not rdm_file.is_file():
        pytest.skip("needs a MAGE by representation and an RDM")
    mage, rdm = read_checkpoint(golden.checkpoint, "MAGE"), read_checkpoint(rdm_file, "RDM")
    rest = {name: tensor for name, tensor in rdm["model"].items() if not name.startswith("pretrained_encoder.")}
    inner = {name: tensor for name, tensor in mage["model"].items() if name.startswith("pretrained_encoder.")}
    if rest["model.diffusion_model.input_proj.weight"].shape[1] != golden.arch["rep_dim"]:
        pytest.skip("this RDM models other representations")
    torch.save({**rdm, "model": rest | inner}, tmp_path / "rdm.pth")
    heads = ["--kind.encoder_heads", golden.config["encoder"]["num_heads"]]
    arguments = [
        "--kind.heads",
        golden.arch["num_heads"],
        "--kind.decoder_heads",
        golden.arch["decoder_num_heads"],
        *heads,
    ]
    assert run("convert", "--from", golden.checkpoint, "--kind", "mage", *arguments, "--out", tmp_path / "mage") == 0
    assert run("convert", "--from", tmp_path / "rdm.pth", "--kind", "rdm", *heads, "--out", tmp_path / "rdm") == 0
    parts = ["--generator", tmp_path / "mage", "--prior", tmp_path / "rdm"]
    assert run("bundle", *parts, "--out", tmp_path / "rcg") == 0
    assert "a bundle of generator, prior, autoencoder, encoder" in capsys.readouterr().out
    for name in ("generator", "prior"):  # small tiles: quick
        path = tmp_path / "rcg" / name / "stage.json"
        description = json.loads(path.read_text())
        del description["checksum"]
        description["stage"]["init_args"]["tile"] = 4
        path.write_text(json.dumps(description))
    return tmp_path / "rcg"


@pytest.mark.golden("mage")
def test_a_converted_rcg_samples_with_each_preset(bundle, tmp_path, capsys):
    images = {}
    for preset in ("rcg_mage_b", "rcg_mage_b_guided"):
        arguments = ["--checkpoint", bundle, "--number", 4, "--accelerator", "cpu", "--out", tmp_path / preset]
        assert run("sample", "--config", preset, *arguments) == 0
        made = sorted((tmp_path / preset / "png").iterdir())
        images[preset] = np.stack([np.asarray(Image.open(path)) for path in made])
    unguided, guided = images.values()
    assert unguided.shape == guided.shape
    assert len(unguided) == 4
    assert not np.array_equal(unguided[0], unguided[1])
    assert not np.array_equal(unguided, guided)


@pytest.mark.golden("mage")
def test_parts_with_different_encoders_are_rejected(bundle, golden, tmp_path, capsys):
    folder = golden.folder.parent / "rdm_uncond"
    arch = json.loads((folder / "config.json").read_text())["encoder_arch"]
    heads = ["--kind.encoder_heads", arch["num_heads"]]
    assert (
        run("convert", "--from", folder / "checkpoint.pth", "--kind", "rdm", *heads, "--out", tmp_path / "other") == 0
    )
    capsys.readouterr()
    arguments = ["--generator", tmp_path / "mage", "--prior", tmp_path / "other", "--out", tmp_path / "wrong"]
    assert run("bundle", *arguments) == 2
    assert "but the generator was trained with" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()

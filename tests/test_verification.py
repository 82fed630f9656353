"""`rcg verify` on everything that commands write: silent about whole files, one line for each damaged one."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rcg_lightning.cli.main import main
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.evaluation.reference import RealSet, Reference
from rcg_lightning.integrity import write_sums
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.network_folder import save_network


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template") / "runs"
    writer = StoreWriter(root / "seed0" / "store", 5, 1, 2, {"dataset": "d", "split": "train", "transform": "none"})
    for shard in writer.shards:
        rows = shard.stop - shard.start
        writer.write(shard, {"representation": np.full((rows, 1, 3), shard.number, np.float32)})
    writer.finish()
    save_network(root / "seed0" / "encoder", SmallConvNet(1, 4), {})
    torch.save({"state_dict": {"w": torch.arange(50.0)}}, root / "last.ckpt")
    torch.save({"w": torch.arange(50.0)}, root / "old.pth", _use_new_zipfile_serialization=False)
    moments = Moments(torch.zeros(3).double(), torch.eye(3).double(), 9, "x")
    Reference("x", RealSet(moments, torch.ones(4, 3), None, None, (8, 8))).save(root / "reference-x.safetensors")
    (root / "png").mkdir()
    for suffix in ("png", "jpg"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "png" / f"0.{suffix}")
    np.savez(root / "samples.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    (root / "kl").mkdir()
    save_file({"w": torch.ones(4)}, root / "kl" / "diffusion_pytorch_model.safetensors")
    (root / "kl" / "config.json").write_text("{}")
    write_sums(root / "kl")
    record = {"key": "k", "seconds": 1.0, "files": {"0.png": (root / "png" / "0.png").stat().st_size}}
    (root / ".png.json").write_text(json.dumps(record))
    (root / "notes.txt").write_text("not ours")
    return root


@pytest.fixture
def runs(template, tmp_path):
    return shutil.copytree(template, tmp_path / "runs")


def verified(path, capsys):
    """Return exit code, lines of the output, and the line of the error."""
    code = main(["verify", str(path)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.strip()


def test_whole_files_pass(runs, capsys):
    assert verified(runs, capsys) == (
        0,
        [f"{runs}: 15 files are whole; 3 of them have no checksum, of these the format was read"],
        "",
    )
    for part in ("seed0/store", "seed0/encoder", "last.ckpt", "reference-x.safetensors"):
        assert verified(runs / part, capsys)[0] == 0


@pytest.mark.parametrize(
    "name",
    [
        "seed0/store/000001.representation.npy",
        "seed0/store/manifest.json",
        "seed0/encoder/weights.safetensors",
        "seed0/encoder/network.json",
        "last.ckpt",
        "reference-x.safetensors",
        "png/0.png",
        "samples.npz",
        "kl/diffusion_pytorch_model.safetensors",
        "kl/config.json",
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_damage_is_named(runs, capsys, name, damage):
    path = runs / name
    content = path.read_bytes()
    at = content.find(b"arange") if b"arange" in content else len(content) // 2
    if name == "last.ckpt":
        at = content.index(torch.arange(50.0).numpy().tobytes()) + 9
    if damage == "flipped":
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    else:
        os.truncate(path, len(content) * 2 // 3)
    code, lines, error = verified(runs, capsys)
    assert code == 2
    assert len(lines) == 1, lines
    assert name.rpartition("/")[2] in lines[0] or name.split("/")[-2] in lines[0]
    assert str(runs) in lines[0]
    assert "1 of 1" in error


def test_every_damaged_file_has_a_line(runs, capsys):
    for number in (0, 2):
        os.truncate(runs / "seed0" / "store" / f"00000{number}.representation.npy", 40)
    os.truncate(runs / "old.pth", 100)
    (runs / "png" / "0.png").unlink()
    (runs / "moved").symlink_to(runs / "elsewhere")
    code, lines, error = verified(runs, capsys)
    assert code == 2
    for name in ("000000", "000002", "old.pth", "0.png", "elsewhere"):
        assert sum(f"{name}" in line for line in lines) == 1, name
    assert len(lines) == 5
    assert "5 of" in error


def test_an_unfinished_store_and_other_paths_are_reported(runs, capsys):
    (runs / "seed0" / "store" / "manifest.json").unlink()
    code, lines, _ = verified(runs / "seed0" / "store", capsys)
    assert (code, len(lines)) == (2, 1)
    assert "incomplete" in lines[0]
    assert "holds nothing to verify" in verified(runs / "notes.txt", capsys)[2]
    assert "correct the path" in verified(runs / "none", capsys)[2]

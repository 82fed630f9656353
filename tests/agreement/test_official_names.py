"""The tensors of full-size official files, without their memory: each is used or skipped on purpose."""

import pytest
import torch

from helpers.recorded import unread
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.heads import ProjectionHead
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.official.base import OfficialFile
from rcg_lightning.official.dit import LABELS, dit_weights, official_dit
from rcg_lightning.official.rdm import EMBEDDING, TABLE, rdm_weights
from rcg_lightning.official.tensor_report import report_tensors, tensors
from rcg_lightning.pretrained import encoder_layouts
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint, strip
from rcg_lightning.pretrained.encoders import MoCoV3Encoder
from rcg_lightning.types import Classes, Vector

SIZES = {"s": (384, 12, 12), "b": (768, 12, 12), "l": (1024, 24, 16)}


@pytest.mark.parametrize("size", SIZES)
def test_moco_v3_is_read_completely(manifest, size):
    names = manifest(f"moco_v3_vit_{size}")
    encoder = MoCoV3Encoder()
    state = encoder.layout({"state_dict": names})
    network, loaded = encoder.build(state, "it")
    width, depth, heads = SIZES[size]
    vit = network.backbone
    assert (vit.dim, len(vit.blocks), vit.blocks[0].attn.num_heads, network.dim) == (width, depth, heads, 256)
    skipped = [name for group in state.skipped.values() for name in group]
    assert sum(loaded.values()) + len(skipped) == len(names)
    assert all(name.startswith(("module.momentum_encoder.", "module.predictor.")) for name in skipped)
    assert len(encoder_layouts.moco_v3_predictor({"state_dict": names})) == sum("predictor" in name for name in skipped)


def test_released_vit_l_is_repaired(manifest):
    names = manifest("moco_v3_vit_l")
    bug = {"13.norm1": "13.norm13", "13.mlp.fc1": "13.mlp.fc13", "14.norm2": "14.norm14", "14.mlp.fc2": "14.mlp.fc14"}
    damaged = dict(names)
    for right, wrong in bug.items():
        for kind in ("weight", "bias"):
            prefix = "module.base_encoder.blocks."
            damaged[f"{prefix}{wrong}.{kind}"] = damaged.pop(f"{prefix}{right}.{kind}")
    repaired = encoder_layouts.moco_v3({"state_dict": damaged})
    assert repaired.backbone.keys() == encoder_layouts.moco_v3({"state_dict": names}).backbone.keys()


@pytest.mark.parametrize("kind", ["uncond", "classcond"])
@pytest.mark.parametrize("size", ["b", "l"])
@pytest.mark.parametrize("ema", [True, False])
def test_rdm_is_read_completely(manifest, size, kind, ema):
    names = manifest(f"rdm_mocov3vit{size}_{kind}")
    weights = rdm_weights({"model": names}, ema)
    state = weights.network
    width, time_dim = state["input_proj.weight"].shape[0], state["time_embed.0.weight"].shape[0]
    bottleneck = state["blocks.0.in_linear.weight"].shape[0]
    condition = weights.conditioner[TABLE].shape[1] if kind == "classcond" else 0
    depth = sum(name.endswith("in_linear.weight") for name in state)
    with torch.device("meta"):
        network = ResidualMLP(width, depth, bottleneck, time_dim)
        network.build((state["input_proj.weight"].shape[1],), condition)
    load_strictly(network, state, "it")
    assert names[EMBEDDING].shape == (1000 if kind == "classcond" else 1, 512)
    assert weights.conditioner.keys() == ({TABLE} if kind == "classcond" else set())
    tables = [name for name in names if "." not in name]
    assert len(tables) == 12
    ema_names = sum(name.startswith("model_ema.") for name in names)
    assert ema_names == len(state) + 2  # and its decay and count
    encoder = strip(names, "pretrained_encoder.")
    assert 2 * len(state) + 2 + len(tables) + len(encoder) + 1 == len(names)
    assert "norm.weight" in encoder


@pytest.mark.golden("rdm")
def test_rdm_ema_weights_and_raw_weights_are_separated(golden):
    content = read_checkpoint(golden.checkpoint, "RDM")
    raw, ema = rdm_weights(content, ema=False), rdm_weights(content, ema=True)
    assert raw.network.keys() == ema.network.keys()
    ema_name = "model_ema.diffusion_modelinput_projweight"
    torch.testing.assert_close(ema.network["input_proj.weight"], content["model"][ema_name])
    torch.testing.assert_close(
        raw.network["input_proj.weight"], content["model"]["model.diffusion_model.input_proj.weight"]
    )


@pytest.mark.golden("rdm")
def test_files_with_a_namespace_are_read(golden):
    path = golden.folder / "checkpoint_namespace.pth"
    if not path.is_file():
        pytest.skip("this folder has no file with a namespace")
    assert type(read_checkpoint(path, "RDM")["args"]).__name__ == "Namespace"


def test_a_projection_head_has_the_official_names(manifest):
    names = manifest("moco_v3_vit_s")
    prefix = "module.base_encoder.head."
    official = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    with torch.device("meta"):
        assert official == set(ProjectionHead(384).state_dict())


@pytest.mark.golden("dit")
@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_a_dit_is_written_back_to_the_official_layout(golden, ema):
    """Equal, except unread tensors, which are zero, and the one label that an unconditional model folds in."""
    content = read_checkpoint(golden.checkpoint, "DiT")
    official = content["model_ema" if ema else "model"]
    width = official["rep_embedder.weight"].shape[1]
    classes = golden.arch["num_classes"]
    parts = (Vector(width),) if "in.rep" in golden.io else (Classes(classes),) if classes > 1 else ()
    weights = dit_weights(content, parts, ema)
    back = official_dit(weights.network, weights.conditioner, official["pos_embed"], width)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in official.items()}
    skipped = unread(official, weights) - {"pos_embed"}
    for name, tensor in official.items():
        if name == "t_embedder.mlp.2.bias" and not parts:
            torch.testing.assert_close(back[name], tensor + official[LABELS][0])
        elif name in skipped:
            assert not back[name].any()
        else:
            assert torch.equal(back[name], tensor), name
    again = dit_weights({"model": back}, parts, ema=False)
    for read, own in ((again.network, weights.network), (again.conditioner, weights.conditioner)):
        assert read.keys() == own.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in own.items())
    with pytest.raises(UserError, match="one condition at most"):
        official_dit({}, {"parts.1.table.weight": official[LABELS]}, official["pos_embed"])


@pytest.mark.parametrize(("name", "size"), [("dit_xl_2_repcond", "XL/2"), ("dit_l_2_repcond", "L/2")])
def test_full_size_files_are_read_completely(manifest, name, size):
    names = manifest(name)
    width, rep = names["rep_embedder.weight"].shape
    parts = (Vector(rep),)
    weights = dit_weights({"model": names}, parts, ema=False)
    with torch.device("meta"):
        network, conditioner = DiT(size=size), Conditioner(drop=0.1 if "fake_latent" in names else 0)
        channels = names["x_embedder.proj.weight"].shape[1]
        side = 2 * round(names["pos_embed"].shape[1] ** 0.5)
        network.build((channels, side, side), conditioner.build(parts, width), out_factor=2)
    load_strictly(network, weights.network, "it")
    load_strictly(conditioner, weights.conditioner, "it")
    assert len(weights.network) + len(weights.conditioner) + len({"pos_embed", LABELS}) == len(names)
    back = official_dit(network.state_dict(), conditioner.state_dict(), network.positions)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in names.items()}


CONTAINERS = {
    "moco_v3": lambda names: {"state_dict": names, "epoch": 300},
    "ldm_vq": lambda names: {"state_dict": names},
    "maskgit": lambda names: names,
    "dit": lambda names: {"model": names, "model_ema": {name: t.clone() for name, t in names.items()}},
    "adm": lambda names: {"model": names, "model_ema": {name: t.clone() for name, t in names.items()}},
    "": lambda names: {"model": names, "model_ema": None},
}


def test_full_size_files_are_converted_tensor_by_tensor(manifest, full_size):
    """The whole conversion except writing, without memory: every tensor mapped, changed or left out for a reason."""
    name = full_size
    if "icgan" in name:
        pytest.skip("the files of IC-GAN are converted together, in a test of their own")
    content = next(make for start, make in CONTAINERS.items() if name.startswith(start))(manifest(name))
    kind = OfficialFile.of(content, name)
    parts = kind.parts(content, name)
    used = [tensor for part in parts.values() for tensor in part.used.values()]
    assert all(tensor.is_meta for tensor in used if tensor.ndim)
    changed = {pattern: how for part in parts.values() for pattern, how in part.changed.items()}
    found = report_tensors(content, used, kind.ignored, changed)
    assert not found.unknown
    assert found.mapped
    named = [
        *found.mapped,
        *(name for group in (found.changed, found.ignored) for names in group.values() for name in names),
    ]
    assert sorted(named) == sorted(name for name, _ in tensors(content))
    expected = {"encoder"} if "moco_v3" in name else {"autoencoder"} if "vq" in name else {"generator"}
    expected |= {"encoder"} if name.startswith(("rdm", "mage", "ldm_8")) else set()
    expected |= {"autoencoder"} if name.startswith(("mage", "ldm_8")) else set()
    assert parts.keys() == expected

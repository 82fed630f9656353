"""Official encoders on tiny files in the official layout: sizes, rejected files and messages."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from rcg_lightning.errors import UserError
from rcg_lightning.networks.heads import BottleneckHead, Predictor, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.encoders import DeiTEncoder, DINOEncoder, IBOTEncoder, MoCoV3Encoder
from rcg_lightning.pretrained.normalisation import Identity


def vit(**changes):
    return VisionTransformer(**{"image_size": 32, "width": 24, "depth": 2, "heads": 2, **changes})


def prefixed(prefix, module):
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def moco(**changes):
    width = changes.get("width", 24)
    branches = {}
    for branch in ("base_encoder", "momentum_encoder"):
        branches |= prefixed(f"module.{branch}.", vit(**changes))
        branches |= prefixed(f"module.{branch}.head.", ProjectionHead(width, 12, 8))
    return {"epoch": 1, "state_dict": branches | prefixed("module.predictor.", Predictor(8, 12, 8)), "optimizer": {}}


def dino(last=("head.last_layer.weight",)):
    teacher = prefixed("backbone.", vit()) | prefixed("head.", BottleneckHead(24, 10, 6))
    return {"teacher": teacher | {name: torch.ones(3, 6) for name in last}, "args": argparse.Namespace(lr=1)}


IBOT = (
    "head.last_layer.weight_g",
    "head.last_layer.weight_v",
    "head.last_layer2.weight_g",
    "head.last_layer2.weight_v",
)


def deit():
    return {"model": vit().state_dict() | {"head.weight": torch.randn(5, 24), "head.bias": torch.zeros(5)}}


def rdm():
    return {"model": {"betas": torch.ones(3), "model.diffusion_model.res_blocks.0.in_layers.0.weight": torch.ones(3)}}


@pytest.fixture
def written(tmp_path):
    def write(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("kind", "content", "dim"),
    [(MoCoV3Encoder, moco, 8), (DINOEncoder, dino, 6), (IBOTEncoder, lambda: dino(IBOT), 6), (DeiTEncoder, deit, 5)],
)
def test_sizes_follow_from_the_file(written, kind, content, dim):
    encoder = kind(written(content()), heads=2)
    assert encoder(torch.rand(2, 3, 50, 40)).shape == (2, encoder.dim) == (2, dim)
    assert encoder.preprocess.size == 32
    assert "2 heads, patches of 16 in 32 pixels" in encoder.report()


def test_moco_v3_reads_the_base_encoder(written):
    content = moco()
    encoder = MoCoV3Encoder(written(content), head=False, heads=2, normalise=Identity())
    base = vit()
    prefix = "module.base_encoder."
    names = base.state_dict()
    base.load_state_dict({name: content["state_dict"][prefix + name] for name in names})
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(encoder(image), base(encoder.preprocess(image)).detach())


def test_the_number_of_heads_is_known_for_published_widths_only(written):
    path = written(moco(width=384, depth=1, heads=12))
    assert "12 heads" in MoCoV3Encoder(path).report()
    with pytest.raises(UserError, match="give it as heads"):
        MoCoV3Encoder(written(moco(), "other.pth")).setup()
    bare = written(vit(width=384, depth=1, heads=6).state_dict(), "dino.pth")
    assert "6 heads" in DINOEncoder(bare, head=False).report()


def test_backbone_only_files_have_no_head(written):
    path = written(vit().state_dict())
    with pytest.raises(UserError, match="no head"):
        DINOEncoder(path, heads=2).setup()
    assert DINOEncoder(path, head=False, heads=2).dim == 24


@pytest.mark.parametrize(
    ("kind", "content", "found"),
    [
        (MoCoV3Encoder, rdm, "an RDM checkpoint"),
        (MoCoV3Encoder, dino, "a DINO checkpoint"),
        (MoCoV3Encoder, deit, "plain Vision Transformer"),
        (DINOEncoder, moco, "a MoCo v3 checkpoint"),
        (DINOEncoder, lambda: dino(IBOT), "an iBOT checkpoint"),
        (IBOTEncoder, dino, "a DINO checkpoint"),
        (DeiTEncoder, dino, "a DINO checkpoint"),
        (DeiTEncoder, lambda: {"lr": 1.0}, "a file with 1 entries (lr"),
    ],
)
def test_wrong_files_are_named(written, kind, content, found):
    with pytest.raises(UserError) as caught:
        kind(written(content()), heads=2).setup()
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_files_are_rejected(written):
    content = moco()
    del content["state_dict"]["module.base_encoder.blocks.1.mlp.fc2.bias"]
    with pytest.raises(UserError, match=r"1 missing: blocks\.1\.mlp\.fc2\.bias"):
        MoCoV3Encoder(written(content), heads=2).setup()
    content = moco()
    content["state_dict"]["module.base_encoder.head.6.weight"] = torch.ones(8, 13)
    with pytest.raises(UserError, match="1 of another shape"):
        MoCoV3Encoder(written(content), heads=2).setup()
    content = moco()
    content["state_dict"]["module.base_encoder.surprise"] = torch.ones(1)
    with pytest.raises(UserError, match="1 not expected: surprise"):
        MoCoV3Encoder(written(content), heads=2).setup()


class Stranger:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(written, capsys):
    with pytest.raises(UserError, match="cannot be read"):
        MoCoV3Encoder(written({"state_dict": {}, "evil": Stranger()})).setup()
    assert "executed" not in capsys.readouterr().out


def test_missing_and_broken_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="give the path"):
        MoCoV3Encoder().setup()
    with pytest.raises(UserError, match="does not exist"):
        MoCoV3Encoder(tmp_path / "no.pth").setup()
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match="cannot be read"):
            MoCoV3Encoder(tmp_path / name).setup()


def test_container_and_legacy_format_do_not_change_the_identity(written, tmp_path):
    content = moco()
    first = MoCoV3Encoder(written(content), heads=2)
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(content["state_dict"], tmp_path / "it.safetensors")
    others = [MoCoV3Encoder(tmp_path / name, heads=2) for name in ("legacy.pth", "it.safetensors")]
    assert {first.identity} == {other.identity for other in others}
    assert MoCoV3Encoder(tmp_path / "legacy.pth", heads=3).identity != first.identity


def test_gradients_reach_the_image(written):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    MoCoV3Encoder(written(moco()), heads=2)(image).square().sum().backward()
    assert image.grad is not None


def test_float16_files_are_computed_in_float32(written):
    content = moco()
    content["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    assert MoCoV3Encoder(written(content), heads=2)(torch.rand(1, 3, 32, 32)).dtype == torch.float32

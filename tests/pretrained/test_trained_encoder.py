import copy
import pickle

import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import MLPHead, Projected
from rcg_lightning.networks.principal_components import fit_principal_components
from rcg_lightning.pretrained.codecs import Pixels, Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.normalisation import Identity, PerSample, UnitLength
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.types import DataSpec


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = Projected(SmallConvNet(1, 8), MLPHead(64, 16, 4, 2)).eval()
    save_network(tmp_path / "encoder", network, encoder_settings(Preprocess([0.5], [0.25])))
    return tmp_path / "encoder"


def test_head_backbone_and_normalisation(folder):
    image = torch.rand(5, 1, 8, 8)
    raw = TrainedEncoder(folder, normalise=Identity())
    network = raw._frozen.module[1]
    torch.testing.assert_close(raw(image), network((image - 0.5) / 0.25))
    torch.testing.assert_close(TrainedEncoder(folder)(image), PerSample()(raw(image)))
    backbone = TrainedEncoder(folder, head=False, normalise=Identity())
    torch.testing.assert_close(backbone(image), network.backbone((image - 0.5) / 0.25))
    assert (raw.dim, backbone.dim) == (4, 64)
    assert "head: from the file" in raw.report()
    assert "head: none" in backbone.report()


def test_identity_depends_on_weights_head_preprocessing_and_normalisation(folder, tmp_path):
    same = TrainedEncoder(folder).identity
    assert same == TrainedEncoder(folder, normalise=PerSample()).identity
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert TrainedEncoder(moved).identity == same
    network = Projected(SmallConvNet(1, 8), MLPHead(64, 16, 4, 2)).eval()
    other, sized = tmp_path / "other", tmp_path / "sized"
    save_network(other, network, encoder_settings(Preprocess([0.5], [0.25])))
    save_network(sized, network, encoder_settings(Preprocess([0.5], [0.25], size=16)))
    kinds = [
        TrainedEncoder(moved),
        TrainedEncoder(moved, head=False),
        TrainedEncoder(moved, normalise=UnitLength()),
        TrainedEncoder(other),
        TrainedEncoder(sized),
    ]
    assert len({encoder.identity for encoder in kinds}) == len(kinds)


def test_copies_and_descriptions_hold_neither_weights_nor_path(folder):
    encoder = TrainedEncoder(folder)
    image = torch.rand(2, 1, 8, 8)
    expected = encoder(image)
    assert copy.deepcopy(encoder) is encoder
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(image), expected)
    encoder.release()
    assert encoder.dim == 4
    assert torch.equal(encoder(image), expected)
    with pytest.raises(UserError, match="folder"):
        construct(describe(encoder)).setup()


def test_principal_components_are_an_encoder(tmp_path):
    images = torch.rand(50, 1, 8, 8)
    save_network(
        tmp_path / "pca", fit_principal_components(images, 6), encoder_settings(Preprocess([0.0], [1.0]), head=False)
    )
    encoder = TrainedEncoder(tmp_path / "pca")
    assert encoder(images).shape == (50, encoder.dim) == (50, 6)
    with pytest.raises(UserError, match="no head"):
        TrainedEncoder(tmp_path / "pca", head=True).setup()


def test_a_network_that_is_no_encoder_is_rejected(tmp_path):
    save_network(tmp_path / "n", SmallConvNet(1, 8), {"classes": 10})
    with pytest.raises(UserError, match="no encoder"):
        TrainedEncoder(tmp_path / "n").setup()


def test_pixels_are_inverse_and_clamped():
    codec, spec = Pixels(), DataSpec(image=(1, 8, 8))
    image = torch.rand(2, 1, 8, 8)
    z = codec.encode({"image": image})
    assert codec.shape(spec) == tuple(z.shape[1:])
    torch.testing.assert_close(codec.decode(z), image)
    assert z.min() < 0
    assert codec.decode(3 * torch.ones(1, 1, 8, 8)).max() == 1


def test_representations_come_from_the_store_or_the_encoder(folder):
    encoder = TrainedEncoder(folder)
    spec = DataSpec(image=(1, 8, 8), columns={"representation": {"shape": [4]}})
    stored, online = Representations(), Representations(encoder)
    assert (stored.needs, online.needs) == (frozenset({"representation"}), frozenset({"image"}))
    assert stored.shape(spec) == online.shape(DataSpec(image=(1, 8, 8))) == (4,)
    image = torch.rand(2, 1, 8, 8, requires_grad=True)
    assert torch.equal(online.encode({"image": image}), encoder(image))
    assert not online.encode({"image": image}).requires_grad
    h = torch.randn(2, 4)
    assert stored.encode({"representation": h}) is stored.decode(h) is h
    with pytest.raises(UserError, match="store"):
        stored.shape(DataSpec(image=(1, 8, 8)))
    with pytest.raises(UserError, match="store"):
        stored.encode({"image": image})


def test_precision_is_part_of_the_identity_and_the_normalisation_is_float32(folder):
    full, half = TrainedEncoder(folder), TrainedEncoder(folder, precision="bf16")
    assert half.identity == f"{full.identity}-bf16"
    image, seen = torch.rand(5, 1, 8, 8), []
    half._frozen.module[1].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    half._frozen.module[2].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    rounded = half(image)
    assert seen == [torch.bfloat16, torch.float32]
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, full(image))
    torch.testing.assert_close(rounded, full(image), rtol=0.1, atol=0.1)
    torch.testing.assert_close(rounded.std(1), torch.ones(5))

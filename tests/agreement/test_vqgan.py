"""MaskGIT's VQGAN and LDM's first stage, alone and from inside the files of MAGE and LDM."""

import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN
from rcg_lightning.official.tokenizers import CODES, FIRST_STAGE, INNER_TOKENIZER, official_vq, vq_network
from rcg_lightning.pretrained.checkpoints import entry, load_strictly, read_checkpoint, strip

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
pytestmark = pytest.mark.golden("maskgit_vqgan", "ldm", "mage")


def read(golden):
    content = read_checkpoint(golden.checkpoint, "the autoencoder")
    network, weights = vq_network(content)
    load_strictly(network, weights, "it")
    return content, network.eval()


def inner(state):
    """The autoencoder's part of a state dict, in official names."""
    prefix = next((prefix for prefix in (INNER_TOKENIZER, FIRST_STAGE) if prefix + CODES in state), "")
    return strip(state, prefix)


def recorded(golden, *names):
    """Return the first of the names that was recorded."""
    return next((golden.io[name] for name in names if name in golden.io), None)


@torch.no_grad()
def test_images_become_codes_and_codes_images(golden):
    _, network = read(golden)
    image = golden.io["in.images"]
    z = network.encode(image)
    expected = recorded(golden, "out.z_before_quantise", "out.first_stage.encode_prequant")
    if expected is not None:
        torch.testing.assert_close(z, expected, **CLOSE)
        assert network.shape(tuple(image.shape[1:])) == tuple(expected.shape[1:])
    quantised, indices = network.quantise(z)
    expected = recorded(golden, "out.indices_flat", "out.first_stage.indices", "out.gt_indices")
    assert torch.equal(indices.flatten(), expected.flatten())
    assert torch.equal(network.lookup(indices), quantised)
    expected = recorded(golden, "out.z_quantised", "out.first_stage.quantised")
    if expected is not None:
        torch.testing.assert_close(quantised, expected, **CLOSE)
    expected = recorded(golden, "out.reconstruction", "out.first_stage.decode_with_quantise")
    if expected is not None:
        torch.testing.assert_close(network(image), expected, **CLOSE)


@torch.no_grad()
def test_further_recordings(golden):
    """Indices decoded, a wide image, latents decoded with and without quantisation."""
    _, network = read(golden)
    io, compared = golden.io, 0
    pairs = [("in.indices", "out.decoded_indices")]
    pairs += [(name, name.replace("final_ids", "images")) for name in io if name.endswith(".final_ids")]
    for given, expected in pairs:
        if given in io:
            side = round(io[given][0].numel() ** 0.5)
            made = network.decode(network.lookup(io[given].view(-1, side, side)))
            torch.testing.assert_close(made, io[expected], **CLOSE)
            compared += 1
    if "in.image_wide" in io:
        torch.testing.assert_close(network.encode(io["in.image_wide"]), io["out.wide_z_before_quantise"], **CLOSE)
    if "out.first_stage.decode_no_quantise" in io:
        torch.testing.assert_close(network.decode(io["in.x"]), io["out.first_stage.decode_no_quantise"], **CLOSE)
        quantised, _ = network.quantise(io["in.x"])
        torch.testing.assert_close(network.decode(quantised), io["out.first_stage.decode_of_x"], **CLOSE)
        compared += 1
    assert compared


def test_files_are_written_back_to_the_official_layout(golden):
    content, network = read(golden)
    official = inner(entry(content, "state_dict", "model"))
    back = official_vq(network, network.state_dict())
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())


def test_training_only_networks_are_skipped_and_wrong_files_are_reported(golden):
    _, network = read(golden)
    official = official_vq(network, network.state_dict())
    more = {**official, "loss.discriminator.main.0.weight": torch.zeros(1)}
    assert vq_network({"state_dict": more})[1].keys() == network.state_dict().keys()
    for name, message in (("encoder.norm_out.bias", "missing: encoder.out_norm.bias"), (CODES, "holds no weights of")):
        with pytest.raises(UserError, match=message):
            vq_network({key: tensor for key, tensor in official.items() if key != name})
    with pytest.raises(UserError, match="it is a DINO checkpoint"):
        vq_network({"teacher": {}})


@torch.no_grad()
def test_maps_with_other_channels_than_codes():
    """LDM's ``quant_conv`` goes from ``z_channels`` to ``embed_dim``, and ``post_quant_conv`` back."""
    torch.manual_seed(0)
    own = VQGAN(3, 32, (1, 2), 1, codes=8, dim=3, attention=(2,), z_channels=6).eval()
    official = official_vq(own, own.state_dict())
    shapes = {name: tuple(official[f"{name}.weight"].shape) for name in ("quant_conv", "post_quant_conv")}
    assert shapes == {"quant_conv": (3, 6, 1, 1), "post_quant_conv": (6, 3, 1, 1)}
    assert official["encoder.conv_out.weight"].shape[0] == official["decoder.conv_in.weight"].shape[1] == 6
    network, weights = vq_network({"state_dict": official})
    load_strictly(network, weights, "it")
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(network.eval()(image), own(image))
    maps = torch.nn.functional.conv2d(own.encoder(image), official["quant_conv.weight"], official["quant_conv.bias"])
    torch.testing.assert_close(network.encode(image), maps)


SIZES = {
    "maskgit_vqgan": MaskGITVQGAN,
    "mage_base_uncond": MaskGITVQGAN,
    "mage_base_classcond": MaskGITVQGAN,
    "mage_base_repcond": MaskGITVQGAN,
    "mage_large_repcond": MaskGITVQGAN,
    "ldm_vq_f8": VQGAN,
    "ldm_8_repcond": VQGAN,
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_files_are_read_completely(manifest, name):
    """The sizes of the classes are the official ones; nothing is built in memory."""
    names = manifest(name)
    network, weights = vq_network({"model": names})
    with torch.device("meta"):
        own = SIZES[name]()
    load_strictly(own, weights, "it")
    assert type(network) is type(own)
    back = official_vq(own, own.state_dict())
    shapes = {key: tensor.shape for key, tensor in inner(names).items()}
    assert {key: tensor.shape for key, tensor in back.items()} == shapes

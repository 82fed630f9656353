"""Codecs of autoencoders: the same z from a store and from images, and never from another autoencoder."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.autoencoders import kl_network, save_kl, save_vq
from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.vqgan import VQGAN
from rcg_lightning.pretrained import autoencoders
from rcg_lightning.pretrained.codecs import KLLatents, Pixels, VQLatents, VQTokens
from rcg_lightning.types import DataSpec

MAKERS = {VQTokens: save_vq, VQLatents: lambda folder, **more: save_vq(folder, VQGAN, **more), KLLatents: save_kl}
SHAPES = {VQTokens: (16,), VQLatents: (4, 4, 4), KLLatents: (4, 4, 4)}


def make(kind, folder, **more):
    """Return the folder of an autoencoder that ``kind`` reads, and the data spec of 8x8 images that fit it."""
    channels = 3 if kind is KLLatents else 1
    return MAKERS[kind](folder, channels=channels, **more), DataSpec((channels, 8, 8))


def stored_spec(codec, spec):
    """The data spec of a store that the codec made."""
    column = codec.column_spec(spec.image)
    return replace(spec, columns={codec.column: column}, identities={codec.column: codec.identity})


@pytest.mark.parametrize("kind", MAKERS)
def test_z_is_the_same_from_a_store_and_from_images(kind, tmp_path):
    folder, spec = make(kind, tmp_path / "it")
    online, stored = kind(folder, stored=False), kind()
    assert (online.needs, stored.needs) == ({"image"}, {kind.column})
    described, from_store = online.extend_spec(spec), stored_spec(online, spec)
    assert stored.extend_spec(from_store) is from_store
    assert online.shape(described) == stored.shape(from_store) == SHAPES[kind]
    assert online.count(described) == stored.count(from_store) == (12 if kind is VQTokens else None)
    batch = {"image": torch.rand(5, *spec.image), "index": torch.arange(5)}
    row = {kind.column: online.encoded(batch["image"]).contiguous(), "index": batch["index"]}
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            torch.manual_seed(0)
            first = online.encode(batch)
            torch.manual_seed(0)
            assert torch.equal(first, stored.encode(row))
    assert first.shape[1:] == SHAPES[kind]
    made = online.decode(first)
    assert made.shape == batch["image"].shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


@pytest.mark.parametrize("kind", MAKERS)
def test_another_or_a_missing_autoencoder_is_reported(kind, tmp_path):
    (own, spec), (other, _) = make(kind, tmp_path / "own"), make(kind, tmp_path / "other", seed=1)
    from_store = stored_spec(kind(own), spec)
    with pytest.raises(UserError, match=f"other is the autoencoder .* made the {kind.column}"):
        kind(other).shape(from_store)
    trained = construct(describe(kind(own)))
    assert trained.folder is None
    trained.shape(from_store)
    with pytest.raises(UserError, match="--autoencoder"):
        trained.check_decoding()
    with pytest.raises(UserError, match="made the"):
        trained.use_autoencoder(other)
    trained.use_autoencoder(own)
    trained.check_decoding()
    assert copy.deepcopy(trained).autoencoder is trained.autoencoder
    with pytest.raises(UserError, match=f"no stored {kind.column}"):
        kind().shape(spec)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_made_in_less_precision_has_another_identity_and_any_precision_decodes_it(kind, tmp_path):
    folder, spec = make(kind, tmp_path / "it")
    full, half = kind(folder), kind(folder, precision="bf16")
    assert half.identity == f"{full.identity}-bf16"
    image = torch.rand(2, *spec.image)
    exact, rounded = (codec.encoded(image).float() for codec in (full, half))
    assert exact.shape == rounded.shape
    assert not torch.equal(exact, rounded) or kind is VQTokens
    from_store = stored_spec(half, spec)
    full.shape(from_store)
    z = rounded if kind is VQTokens else rounded[:, :4]
    z = z.long() if kind is VQTokens else z
    decoded = full.decode(z)
    full.set_precision("bf16")
    assert full.identity == half.identity
    half.shape(from_store)
    lower = full.decode(z)
    assert lower.dtype == torch.float32
    assert torch.equal(lower, half.decode(z))
    assert not torch.equal(lower, decoded)
    torch.testing.assert_close(lower, decoded, rtol=0.1, atol=0.1)


def test_the_nearest_codes_are_found_in_float32(tmp_path):
    folder, spec = make(VQTokens, tmp_path / "it")
    codec, seen = VQTokens(folder, precision="bf16"), []
    network = codec.autoencoder.network
    quantise = network.quantise
    network.quantise = lambda z: seen.append((z.dtype, torch.is_autocast_enabled("cpu"))) or quantise(z)
    codec.encoded(torch.rand(1, *spec.image))
    assert seen == [(torch.float32, False)]


def test_a_codec_without_a_network_has_no_precision():
    with pytest.raises(UserError, match="Pixels has no autoencoder"):
        Pixels().set_precision("bf16")


def test_an_online_codec_describes_its_autoencoder(tmp_path):
    """The checkpoint holds the extended data spec: it sizes the networks, and another autoencoder is rejected."""
    (own, spec), (other, _) = make(VQTokens, tmp_path / "own"), make(VQTokens, tmp_path / "other", seed=1)
    described = VQTokens(own, stored=False).extend_spec(spec)
    assert described.identities == {"tokens": VQTokens(own).identity}
    again = VQTokens(stored=False)
    assert again.extend_spec(described) is described
    assert (again.shape(described), again.count(described)) == ((16,), 12)
    with pytest.raises(UserError, match="made the"):
        again.use_autoencoder(other)


def test_an_autoencoder_on_the_hub_is_fetched_at_its_first_use_and_never_named_in_a_checkpoint(monkeypatch, tmp_path):
    asked = []

    def fetched(source):
        asked.append(source)
        return kl_network(seed=len(asked))

    monkeypatch.setattr(autoencoders, "load_kl", fetched)
    from_store = stored_spec(KLLatents(hub="some/name"), DataSpec((3, 8, 8)))
    codec = construct(describe(KLLatents(hub="some/name")))
    assert codec.shape(from_store) == (4, 4, 4)
    with pytest.raises(UserError, match="needs its autoencoder"):
        codec.check_decoding()
    codec = KLLatents(hub="some/name")
    assert codec.shape(from_store) == (4, 4, 4)
    assert asked == ["some/name"]
    with pytest.raises(UserError, match=r"the given network is the autoencoder .* made the"):
        codec.decode(torch.zeros(1, 4, 4, 4))
    assert asked == ["some/name"] * 2
    with pytest.raises(UserError, match="other/name is the autoencoder"):
        codec.use_autoencoder(Path("other/name"))
    assert asked[2:] == ["other/name"]


def test_columns_that_do_not_fit_are_reported(tmp_path):
    folder, spec = make(VQTokens, tmp_path / "own")
    more, _ = make(VQTokens, tmp_path / "more", codes=20)
    columns = {"tokens": {"shape": [16], "count": 12}}
    with pytest.raises(UserError, match="20 codes, but 12"):
        VQTokens(more).shape(replace(spec, columns=columns))
    with pytest.raises(UserError, match="number of codes"):
        VQTokens().shape(replace(spec, columns={"tokens": {"shape": [16]}}))
    with pytest.raises(UserError, match="8x7"):
        VQTokens(folder, stored=False).extend_spec(DataSpec((1, 8, 7)))
    moments = {"latent": {"shape": [8, 4, 4], "moments": True}}
    with pytest.raises(UserError, match="KLLatents"):
        VQLatents().shape(replace(spec, columns=moments))
    with pytest.raises(UserError, match="VQLatents"):
        KLLatents().shape(replace(spec, columns={"latent": {"shape": [4, 4, 4]}}))
    with pytest.raises(UserError, match="Pixels encodes and decodes without one"):
        Pixels().use_autoencoder(folder)


def test_latents_of_a_kl_autoencoder_are_sampled_again_in_training_only():
    """From the stored mean and deviation; 0.18215 is Stable Diffusion's scale."""
    mean, deviation, index = torch.full((400, 4, 2, 2), 3.0), torch.full((400, 4, 2, 2), 0.5), torch.arange(400)
    batch = {"latent": torch.cat([mean, deviation], dim=1), "index": index}
    codec = KLLatents()
    z = codec.encode(batch) / 0.18215
    assert not torch.equal(z, codec.encode(batch) / 0.18215)
    with torch.no_grad():
        fixed = codec.encode(batch)
        assert torch.equal(fixed, codec.encode(batch))
        assert torch.equal(fixed[7:9], codec.encode({name: values[7:9] for name, values in batch.items()}))
    for sample in (z, fixed / 0.18215):
        assert abs(float(sample.mean()) - 3) < 0.03
        assert abs(float(sample.std()) - 0.5) < 0.03
    exact = {"latent": torch.cat([mean, torch.zeros_like(mean)], dim=1), "index": index}
    torch.testing.assert_close(KLLatents(scale=2.0).encode(exact), 2 * mean)


def test_decoding_first_quantises_latents_of_a_codebook(tmp_path):
    folder, spec = make(VQLatents, tmp_path / "it")
    latents, tokens = VQLatents(folder, stored=False), VQTokens(folder, stored=False)
    tokens.shape(tokens.extend_spec(spec))
    batch = {"image": torch.rand(3, 1, 8, 8)}
    z = latents.encode(batch)
    torch.testing.assert_close(latents.decode(z), tokens.decode(tokens.encode(batch)))
    assert not torch.allclose(z, latents.autoencoder.network.quantise(z)[0])

"""`rcg extract` of tokens and latents, and sampling with the autoencoder, from the command line."""

import numpy as np
import pytest

from helpers.autoencoders import save_vq
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.data.image_dataset import ImageDataset
from rcg_lightning.data.store import Store
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.vqgan import VQGAN
from rcg_lightning.pretrained.autoencoders import VQAutoencoder
from rcg_lightning.pretrained.codecs import VQTokens
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec

DATA = ["--config", "digits/data", "--data.source.limit", 100, "--data.batch_size", 32, "--accelerator", "cpu"]


@pytest.fixture
def networks(tmp_path):
    """Folders of an encoder, a tokenizer and another autoencoder, as command-line words."""
    save_network(tmp_path / "encoder", SmallConvNet(1, 8, (8, 16)), encoder_settings(Preprocess([0.5], [0.5]), False))
    save_vq(tmp_path / "tokenizer")
    save_vq(tmp_path / "latents", VQGAN)
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", tmp_path / "encoder"]
    tokens = ["--codec+", "VQTokens", "--codec.folder", tmp_path / "tokenizer"]
    return encoder, tokens, ["--codec+", "VQLatents", "--codec.folder", tmp_path / "latents"]


def test_all_columns_come_from_one_pass_and_equal_separate_ones(rcg, networks, tmp_path, monkeypatch):
    read, images = [], ImageDataset._images

    def counted(self, index, u, mirror):
        read.extend(index.tolist())
        return images(self, index, u, mirror)

    monkeypatch.setattr(ImageDataset, "_images", counted)
    encoder, tokens, latents = networks
    code, output, error = rcg("extract", *DATA, *encoder, *tokens, *latents, "--out", tmp_path / "all")
    assert code == 0, error
    assert sorted(read) == list(range(100))
    assert (
        "100 images, 1 views, representation of shape [16], tokens of shape [16], latent of shape [4, 4, 4]" in output
    )
    assert "VQTokens: by MaskGITVQGAN" in output
    whole = Store.open(tmp_path / "all")
    for words, column in zip(networks, ("representation", "tokens", "latent"), strict=True):
        assert rcg("extract", *DATA, *words, "--out", tmp_path / column)[0] == 0
        alone = Store.open(tmp_path / column)
        np.testing.assert_array_equal(alone.whole(column), whole.whole(column))
        assert alone.identity[column] == whole.identity[column]
    assert whole.identity["tokens"] == VQAutoencoder(tmp_path / "tokenizer").identity
    assert (whole.columns["tokens"]["dtype"], whole.columns["tokens"]["count"]) == ("uint16", 12)
    assert rcg("extract", *DATA, *latents, "--floats", "float16", "--out", tmp_path / "half")[0] == 0
    assert Store.open(tmp_path / "half").columns["latent"]["dtype"] == "float16"


def test_a_stopped_extraction_continues_and_encodes_no_image_twice(rcg, networks, tmp_path, monkeypatch):
    _, tokens, _ = networks
    words = ["extract", *DATA, *tokens, "--shard_rows", 40, "--out", tmp_path / "store"]
    encoded, calls = VQTokens.encoded, []

    def until_stopped(self, image):
        calls.append(len(image))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoded(self, image)

    monkeypatch.setattr(VQTokens, "encoded", until_stopped)
    assert rcg(*words)[0] != 0
    assert [path.name for path in (tmp_path / "store").glob("0*.json")] == ["000000.json"]
    code, _, error = rcg(*words)
    assert code == 0, error
    assert sum(calls[3:]) == 60
    monkeypatch.undo()
    assert rcg(*words[:-1], tmp_path / "again")[0] == 0
    np.testing.assert_array_equal(*(Store.open(tmp_path / name).whole("tokens") for name in ("store", "again")))


def test_mistakes_are_rejected_before_anything_is_written(raised, networks, tmp_path):
    _, tokens, _ = networks
    out = ["--out", tmp_path / "store"]
    assert "nothing to extract" in raised("extract", *DATA, *out)
    assert "known are KLLatents, VQLatents, VQTokens" in raised("extract", *DATA, "--codec", "Pixels", *out)
    assert "each column once" in raised("extract", *DATA, *tokens, *tokens, *out)
    no_folder = ["--codec", "VQTokens", "--codec.folder", tmp_path / "nothing"]
    assert "no network folder" in raised("extract", *DATA, *no_folder, *out)
    save_vq(tmp_path / "colour", channels=3)
    wrong = ["--codec", "VQTokens", "--codec.folder", tmp_path / "colour"]
    assert "3 channels, the data have 1" in raised("extract", *DATA, *wrong, *out)
    as_encoder = ["--codec", "VQTokens", "--codec.folder", tmp_path / "encoder"]
    assert "no codebook" in raised("extract", *DATA, *as_encoder, *out)
    assert not (tmp_path / "store").exists()


@pytest.fixture
def generator(tmp_path, save):
    """A checkpoint of a generator of the tokenizer's tokens, and the tokenizer."""
    folder = save_vq(tmp_path / "tokenizer")
    codec = VQTokens(folder, stored=False)
    spec = codec.extend_spec(DataSpec((1, 8, 8)))
    stage = MaskedStage(
        VQTokens(), NoCondition(), MAGE(16, 1, 2, 16, 1, 2), Conditioner(), AdamW(1e-3), ParallelDecoding(3)
    )
    return save(stage.build(spec), tmp_path / "generator.ckpt"), folder


def test_a_generator_of_tokens_is_sampled_with_its_autoencoder(rcg, raised, generator, tmp_path):
    checkpoint, folder = generator
    save_vq(tmp_path / "other", seed=1)
    words = ["sample", "--checkpoint", checkpoint, "--number", 5, "--accelerator", "cpu", "--out", tmp_path / "samples"]
    assert "--autoencoder" in raised(*words)
    assert "made the tokens here" in raised(*words, "--autoencoder", tmp_path / "other")
    assert not (tmp_path / "samples").exists()
    code, _, error = rcg(*words, "--autoencoder", folder)
    assert code == 0, error
    assert Store.open(tmp_path / "samples" / "store").whole("image").shape == (5, 1, 8, 8, 1)


def test_a_bundle_holds_the_autoencoder(rcg, raised, generator, tmp_path):
    checkpoint, folder = generator
    words = ["bundle", "--generator", checkpoint, "--out", tmp_path / "bundle", "--autoencoder"]
    assert "made the tokens here" in raised(*words, save_vq(tmp_path / "other", seed=1))
    (folder / "secret").symlink_to("/etc/hostname")  # what lies next to a network is no part of it
    (folder / "weights.safetensors").rename(tmp_path / "weights")
    (folder / "weights.safetensors").symlink_to(tmp_path / "weights")  # as in the cache of the hub
    assert rcg(*words, folder)[0] == 0
    copied = list((tmp_path / "bundle" / "autoencoder").iterdir())
    assert {path.name for path in copied} == {"network.json", "weights.safetensors"}
    assert not any(path.is_symlink() for path in copied)
    for more in ([], ["--autoencoder", tmp_path / "bundle"]):
        out = ["--out", tmp_path / f"samples{len(more)}"]
        given = checkpoint if more else tmp_path / "bundle"
        quick = ["--number", 3, "--png", "false", "--accelerator", "cpu"]
        assert rcg("sample", "--checkpoint", given, *more, *quick, *out)[0] == 0
    first, second = (Store.open(tmp_path / f"samples{n}" / "store").whole("image") for n in (0, 2))
    np.testing.assert_array_equal(first, second)


def test_reconstruction_encodes_images_even_for_a_codec_that_reads_a_store(rcg, tmp_path):
    save_vq(tmp_path / "tokenizer")
    words = ["--codec", "VQTokens", "--codec.folder", tmp_path / "tokenizer", "--number", 20, "--json"]
    code, output, error = rcg("reconstruct", *DATA[:4], "--accelerator", "cpu", *words)
    assert code == 0, error
    assert VQAutoencoder(tmp_path / "tokenizer").identity in output

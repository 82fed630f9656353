"""Networks that are missing or hang, and files that are not what they should be."""

import hashlib
import socket
import threading
import time

import pytest
import torch
from diffusers import AutoencoderKL  # noqa: F401, seconds to import, which are not the network's
from huggingface_hub import constants as hub

from rcg_lightning.data.datasets import CIFAR10, MNIST
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_extractors import INCEPTION_FILE, INCEPTION_URL, InceptionExtractor
from rcg_lightning.pretrained import downloads
from rcg_lightning.pretrained.kl_checkpoints import load_kl
from rcg_lightning.pretrained.perceptual import perceptual_similarity
from rcg_lightning.pretrained.timm_encoder import TimmEncoder

DINO = "vit_base_patch14_dinov2.lvd142m"


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    """Keep the caches of torch and of the hub in ``tmp_path``, and let the hub be used."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


@pytest.fixture(params=["names", "connections", "answers", "nothing"])
def bad_network(request, monkeypatch):
    """Emulate a network in which looking up names, connecting or answering hangs, or which is not there."""
    monkeypatch.setattr(downloads, "WAIT", 0.3)
    over = threading.Event()

    def hang(*_args, **_more):
        over.wait(60)
        raise TimeoutError("much too late")

    def unknown(*_args, **_more):
        raise socket.gaierror("Temporary failure in name resolution")

    silent = socket.create_server(("127.0.0.1", 0))  # accepts connections and never says a word
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", silent.getsockname())]
    names = {"names": hang, "nothing": unknown}.get(request.param, lambda *_args, **_more: here)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    if request.param == "connections":
        monkeypatch.setattr(socket.socket, "connect", hang)
    yield
    over.set()
    silent.close()


DOWNLOADS = {
    "timm": (lambda folder: TimmEncoder(DINO).setup(), ["model.safetensors", "huggingface.co/timm/", "as weights"]),
    "kl": (lambda folder: load_kl("stabilityai/sd-vae-ft-mse"), ["diffusion_pytorch_model.safetensors", "folder"]),
    "inception": (lambda folder: InceptionExtractor().setup(), [INCEPTION_URL, f"checkpoints/{INCEPTION_FILE}"]),
    "lpips": (lambda folder: perceptual_similarity("alex"), ["https://", "alexnet-owt-7be5be79.pth", "leave LPIPS"]),
    "mnist": (lambda folder: MNIST(folder / "data").prepare(), ["could not be downloaded", "MNIST/raw", "data"]),
    "cifar10": (lambda folder: CIFAR10(folder / "data").prepare(), ["cifar-10-batches-py", "data"]),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_no_download_waits_for_a_bad_network(name, bad_network, empty_caches):
    download, parts = DOWNLOADS[name]
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        download(empty_caches)
    assert time.monotonic() - start < 3  # of 0.3 allowed, on a busy machine
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_wrong_file_is_never_left_or_used(tmp_path, monkeypatch):
    content = b"weights"
    source, path = tmp_path / "server", tmp_path / "cache" / "file.pth"
    source.write_bytes(content)
    right = hashlib.sha256(content).hexdigest()[:8]
    fetch = ("the weights", source.as_uri(), path)
    with pytest.raises(UserError, match=r"could not be downloaded.*invalid hash.*or do without"):
        downloads.published(*fetch, "0" * 8, "do without")
    assert not list(path.parent.iterdir())
    assert downloads.published(*fetch, right, "do without") == path
    assert path.read_bytes() == content
    path.write_bytes(b"Weights")
    with pytest.raises(UserError, match=rf"file\.pth has another SHA-256.*{right}.*remove it"):
        downloads.published(*fetch, right, "do without")


def test_a_damaged_file_of_the_hubs_cache_is_removed(empty_caches):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    repository = empty_caches / "hub" / "models--some--name"
    blob, snapshot = repository / "blobs" / digest, repository / "snapshots" / ("a" * 40)
    for folder in (blob.parent, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(content)
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "model.safetensors").symlink_to(blob)
    asked = ("some/name", ["model.safetensors"], None, "the weights", "give it as weights")
    assert downloads.hub_file(*asked) == snapshot / "model.safetensors"
    blob.write_bytes(b"Weights")
    with pytest.raises(UserError, match="damaged and is removed"):
        downloads.hub_file(*asked)
    assert not blob.exists()

"""Tiny versions, in the real format, of all data sets, encoders and word vectors that configs name."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.tagged_datasets import DigitTags
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings
from rcg_lightning.pretrained.word_vectors import WordVectorTable

COUNT = 24  # images of each split
DIM = 16  # of a representation
LATENTS: dict[str, dict[str, Any]] = {  # data spec of stored latents, by prefix of a config's name
    "digits/latent": {"shape": [16, 4, 4]},
    "imagenet256/dit": {"shape": [8, 32, 32], "moments": True},
    "imagenet256/ldm": {"shape": [4, 32, 32]},
}
CLASSES = ("n01440764", "n01443537")
ON_CPU = [
    f"--trainer.{value}"
    for value in ("accelerator=cpu", "devices=1", "num_nodes=1", "precision=32-true", "enable_progress_bar=false")
]


def write_everything(root: Path) -> None:
    """Write MNIST, CIFAR-10, a folder of images, ImageNet, MoCo v3's weights and the folder of a small encoder."""
    random = np.random.default_rng(0)
    write_mnist(root / "MNIST" / "raw", random)
    write_cifar10(root / "cifar-10-batches-py", random)
    for folder in ("images", *(f"imagenet/{split}/{name}" for split in ("train", "val") for name in CLASSES)):
        (root / folder).mkdir(parents=True)
        for number in range(COUNT // len(CLASSES)):
            pixels = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.JPEG")
    write_lists(root / "imagenet")
    write_coco(root / "coco", random)
    write_mirflickr(root / "mirflickr", random)
    known = sorted({"sea", "sky", "cat", "indoor"}.union(*DigitTags.class_tags))
    WordVectorTable(known, torch.from_numpy(random.normal(size=(len(known), 8)).astype(np.float32))).save(
        root / "words.txt"
    )
    torch.save({"state_dict": official_names(48)}, root / "vit.pth.tar")
    convnet = SmallConvNet(1, 8, (8, DIM))
    save_network(root / "encoder", convnet, encoder_settings(Preprocess([0.5], [0.5]), head=False))


def write_mnist(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        pixels = random.integers(0, 256, COUNT * 784, dtype=np.uint8)
        header = struct.pack(">4B3i", 0, 0, 8, 3, COUNT, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(COUNT, dtype=np.uint8) % 10
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">4Bi", 0, 0, 8, 1, COUNT) + labels.tobytes())


def write_cifar10(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_mirflickr(root: Path, random: np.random.Generator) -> None:
    (root / "meta" / "tags").mkdir(parents=True)
    for number in range(1, COUNT + 1):
        Image.fromarray(random.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(root / f"im{number}.jpg")
        (root / "meta" / "tags" / f"tags{number}.txt").write_text("sea\nsky\nunheard-of\n" if number % 2 else "cat\n")
    (root / "notes").mkdir()
    (root / "notes" / "indoor.txt").write_text("\n".join(map(str, range(1, COUNT + 1, 3))))


def write_lists(root: Path) -> None:
    """Write the lists of ImageNet-LT: one class with many images and one with few."""
    for name, folder in {"train": "train", "test": "val", "val": "val"}.items():
        counts = {CLASSES[0]: COUNT // 2, CLASSES[1]: 3}
        lines = (f"{folder}/{c}/{i}.JPEG {label}" for label, c in enumerate(CLASSES) for i in range(counts[c]))
        (root / f"ImageNet_LT_{name}.txt").write_text("\n".join(lines))


def write_coco(root: Path, random: np.random.Generator) -> None:
    """Write COCO-Stuff: two objects and one stuff class per image; half of the evaluation images have unseen pairs."""
    (root / "annotations").mkdir(parents=True)
    for split, kinds in {"train": [1], "val": [1, 2]}.items():
        (root / f"{split}2017").mkdir()
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 90, "height": 80} for i in range(COUNT)]
        for image in images:
            pixels = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / image["file_name"])
        for kind, classes in {"instances": [3, 3], "stuff": [100]}.items():
            rows = [
                {"image_id": i, "category_id": c + kinds[i % len(kinds)], "bbox": [0, 0, 45, 40], "iscrowd": 0}
                for i in range(COUNT)
                for c in classes
            ]
            content = {"images": images, "annotations": rows, "categories": []}
            (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))


def official_names(width: int) -> dict[str, torch.Tensor]:
    """Return the weights of a small encoder under the names of an official MoCo v3 file."""
    torch.manual_seed(0)
    parts = {"": VisionTransformer(32, width=width, depth=1), "head.": ProjectionHead(width, 32, DIM)}
    return {f"module.base_encoder.{part}{n}": t for part, net in parts.items() for n, t in net.state_dict().items()}


def write_store(data: ImageDataModule, split: str, folder: Path, latent: dict[str, Any] | None = None) -> Path:
    """Write random representations, clusters and tokens for the images of ``data``, and latents with the given spec."""
    size, views = len(data.images(split)), data.view_count(split)
    random = np.random.default_rng(0)
    columns = {
        "representation": random.normal(size=(size, views, DIM)).astype(np.float32),
        "cluster": random.integers(0, 3, (size, views)),
        "tokens": random.integers(0, 8, (size, views, 16)),
    }
    spec = {"cluster": {"count": 3, "sizes": [size, size, size]}, "tokens": {"count": 8}}
    if latent is not None:
        columns["latent"] = random.normal(size=(size, views, *latent["shape"])).astype(np.float32)
        spec["latent"] = {name: value for name, value in latent.items() if name != "shape"}
    writer = StoreWriter(folder, size, views, size, data.store_identity(split) | dict.fromkeys(columns, "made up"))
    writer.write(writer.shards[0], columns)
    writer.finish(spec)
    return folder


def write_neighbours(data: ImageDataModule, folder: Path, k: int = 3) -> Path:
    """Write arbitrary neighbours of the training images among the representations of ``write_store``."""
    size = len(data.images("train"))
    found = (np.arange(size)[:, None] + np.arange(k)) % size
    writer = StoreWriter(folder, size, 1, size, data.store_identity("train") | {"neighbours": f"made up/k{k}"})
    writer.write(writer.shards[0], {"neighbours": found[:, None]})
    writer.finish({"neighbours": {"representation": "made up"}})
    return folder


def latent_of(config: str) -> dict[str, Any] | None:
    """Return the data spec of the latents that a config reads; None if it reads none."""
    return next((spec for prefix, spec in LATENTS.items() if config.startswith(prefix)), None)


def data_of(data: ImageDataModule, encoder: Encoder | None = None, floats: str = "float32") -> ImageDataModule:
    """Return the data that a command line describes; as a command it accepts the options of extraction."""
    return data

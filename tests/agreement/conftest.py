"""Recorded results of the official code: ``@pytest.mark.golden("moco_v3", "dino")`` runs a test on every folder with
such a prefix, as argument ``golden``. The folders are next to the repository or in RCG_GOLDEN_DIR."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("RCG_GOLDEN_DIR") or Path(__file__).parents[3] / "shared" / "golden")


@dataclass(frozen=True)
class Golden:
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def io(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    @property
    def arch(self) -> dict[str, Any]:
        return self.config["arch"]

    @property
    def checkpoint(self) -> Path:
        return next(self.folder.glob("checkpoint.*"))

    @property
    def kind(self) -> str:
        return self.folder.name


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(*prefixes): run on every folder of recorded results with such a prefix")


def pytest_generate_tests(metafunc):
    if "full_size" in metafunc.fixturenames:
        names = sorted(path.stem for path in (ROOT / "manifests").glob("*.json"))
        reason = f"no lists of full-size files in {ROOT / 'manifests'}: set RCG_GOLDEN_DIR"
        metafunc.parametrize("full_size", names or [pytest.param(None, marks=pytest.mark.skip(reason=reason))])
    if "golden" not in metafunc.fixturenames:
        return
    prefixes = next(metafunc.definition.iter_markers("golden")).args
    found = sorted(p.parent for p in ROOT.glob("*/config.json") if p.parent.name.startswith(prefixes))
    if found:
        metafunc.parametrize("golden", [Golden(folder) for folder in found], ids=[folder.name for folder in found])
    else:
        reason = f"no recorded results {', '.join(prefixes)}* in {ROOT}: set RCG_GOLDEN_DIR"
        metafunc.parametrize("golden", [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ids=["absent"])


@pytest.fixture(scope="session")
def manifest():
    """Read a list of the tensors in a full-size official file, as empty tensors, by its name."""
    import torch

    def read(name: str) -> dict[str, Tensor]:
        path = ROOT / "manifests" / f"{name}.json"
        if not path.is_file():
            pytest.skip(f"no {path}: set RCG_GOLDEN_DIR")
        keys = json.loads(path.read_text())["keys"]
        return {
            key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in keys.items()
        }

    return read

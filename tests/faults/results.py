"""What a run wrote, summed up so that two runs can be compared bit for bit; and whether each file is whole."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open

EXACT = (".npy", ".npz", ".png")
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "stage", "data_spec")
VARYING = {"seconds", "spent", "samples", "command", "path", "key", "files"}  # entries of times, paths and sizes


def final_files(folder: Path) -> Iterator[Path]:
    """Yield the files under final names: no drafts, logs of events or state of commands."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and "tfevents" not in path.name:
            yield path


def results(folder: Path) -> dict[str, str]:
    """Return a hash of what each file of a run means: weights, arrays, images, metrics."""
    return {str(path.relative_to(folder)): _digest(path) for path in final_files(folder)}


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        _update(found, {name: checkpoint.get(name) for name in COMPARED})
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:  # its metadata has no order
            _update(found, dict(sorted((file.metadata() or {}).items())))
            _update(found, {name: file.get_tensor(name) for name in sorted(file.keys())})
    elif path.suffix in EXACT:
        found.update(path.read_bytes())
    elif path.suffix == ".json":
        _update(found, _lasting(json.loads(path.read_text())))
    return found.hexdigest()[:16]  # of other files only the existence counts


def _lasting(content: Any) -> Any:
    """Return a JSON file's content without times and paths."""
    if isinstance(content, Mapping):
        return {key: _lasting(value) for key, value in content.items() if key not in VARYING}
    return [_lasting(value) for value in content] if isinstance(content, list) else content


def _update(found: Any, content: Any) -> None:
    """Add nested plain data and tensors to a hash."""
    if isinstance(content, Mapping):
        for key in content:
            found.update(f"{key!r}:".encode())
            _update(found, content[key])
    elif isinstance(content, list | tuple):
        for item in content:
            _update(found, item)
    elif isinstance(content, torch.Tensor):
        found.update(f"{content.dtype}{tuple(content.shape)}".encode())
        found.update(content.contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        found.update(repr(content).encode())


def torn_files(folder: Path) -> list[str]:
    """Return the files under final names that cannot be read to their end, with the reason."""
    found = []
    for path in final_files(folder):
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__} {error}"[:200])
    return found


def _read(path: Path) -> None:
    if path.suffix in (".ckpt", ".npz"):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise ValueError(f"{broken} is damaged")
    elif path.suffix == ".npy":
        np.load(path, allow_pickle=False)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".yaml":
        if not isinstance(yaml.safe_load(path.read_text()), dict):
            raise ValueError("an empty config")
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, not a mapping
                file.get_tensor(name)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return what differs between the results of two runs."""
    missing = [f"{name} is missing" for name in expected if name not in found]
    return missing + [f"{name} differs" for name in expected if name in found and found[name] != expected[name]]

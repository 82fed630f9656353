import pytest

from helpers.offline import data_of, latent_of, write_everything, write_neighbours, write_store
from rcg_lightning.cli.parsing import call


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """Folder with all offline data sets and weights."""
    root = tmp_path_factory.mktemp("offline")
    write_everything(root)
    return root


@pytest.fixture
def data_options(offline, monkeypatch):
    """Return the command-line options that point a config to the offline data."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    def values(config: str) -> list[str]:
        kind = config.partition("/")[0]
        if kind == "digits":
            return ["--data.source.limit=64"]
        if kind in ("mnist", "cifar10"):
            return [f"--data.source.root={offline}", "--data.source.download=false"]
        if kind == "mirflickr":
            root = offline / kind
            tagged = {"source.root": root, "source.annotation_folder": root / "notes", "source.examples": 40}
            tagged |= {"vectors": offline / "words.txt", "min_count": 1, "workers": 0}
            return [f"--data.{name}={value}" for name, value in tagged.items()]
        small = ["--data.transform.size=32"] if "/icgan" in config else []
        if kind.startswith("coco"):
            return [f"--data.source.root={offline / 'coco'}", "--data.source.validation=0", "--data.workers=0", *small]
        root = offline / ("images" if kind == "folder" else "imagenet")
        return [f"--data.source.root={root}", "--data.workers=0", *small]

    return values


@pytest.fixture
def stores(data_options, tmp_path):
    """Write stores of random representations, clusters, latents and neighbours; return their options."""

    def values(config: str) -> list[str]:
        kind = config.partition("/")[0]
        named = f"{kind}/extract" if kind.startswith(("imagenet", "mirflickr")) else f"{kind}/data"
        named = f"{kind}/icgan_extract" if "/icgan" in config and kind != "digits" else named
        data = call(data_of, "data", ["--config", named, *data_options(config)])
        latent = latent_of(config)
        train, evaluation = (
            write_store(data, split, tmp_path / f"store_{split}", latent) for split in ("train", "eval")
        )
        if "/icgan" in config:
            train = f"{train},{write_neighbours(data, tmp_path / 'neighbours')}"
        return [f"--data.stores=[{train}]", f"--data.eval_stores=[{evaluation}]"]

    return values

"""Tests on the pretended GPU (``make test-device``): a process of their own, because its device stays registered."""

import importlib.util

import pytest

HAS_BACKEND = importlib.util.find_spec("torch.utils.backend_registration") is not None


def pytest_ignore_collect(collection_path, config):
    """Leave these tests out unless they are asked for by ``-m device``."""
    return True if config.option.markexpr != "device" else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "device":
            item.add_marker(pytest.mark.device)


@pytest.fixture(autouse=True, scope="session")
def gpu():
    """The pretended device, switched on for the whole session."""
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no Python backend of PrivateUse1 to pretend a device with")
    from helpers.pretended import autocast  # noqa: F401  # registers CUDA's lists
    from helpers.pretended.device import PretendedDevice

    with PretendedDevice():
        yield


@pytest.fixture
def trains_there(monkeypatch):
    """Let every Trainer that is left to choose its accelerator train on the pretended device."""
    from helpers.pretended.training import install

    install(monkeypatch)


@pytest.fixture(scope="session")
def frozen_networks(tmp_path_factory):
    """Folders of an encoder and autoencoders with random weights."""
    from helpers.device_stages import Networks

    return Networks.write(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """Folder of the digits' stores."""
    return tmp_path_factory.mktemp("stored")


@pytest.fixture
def data_of(digits, stored):
    """Return the digits with the stored columns that a stage reads."""
    from helpers import device_stages

    def data(name):
        reads = name in device_stages.STORED | device_stages.NEIGHBOURS
        module = digits(stored if reads else None, batch_size=16)
        if name in device_stages.NEIGHBOURS:
            source = module.store_paths["train"][0]
            module.store_paths["train"].append(device_stages.write_neighbours(source, stored / "neighbours"))
        return module

    return data


@pytest.fixture(scope="session")
def runs():
    """Finished trainings by name and precision: each is made once."""
    return {}


@pytest.fixture
def fitted(runs, tmp_path_factory, trains_there, data_of, frozen_networks):
    """Train a stage by the Trainer for a few steps, or continue a checkpoint; return its ``DeviceRun``."""
    from helpers.device_stages import STAGES
    from helpers.pretended.training import fit

    def run(name, precision, resume=None):
        key = (name, precision, resume is not None)
        if key not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[key] = fit(STAGES[name](frozen_networks), data_of(name), folder, precision, resume)
        return runs[key]

    return run


def pytest_addoption(parser):
    parser.addoption("--write-kernels", action="store_true", help="write tests/device/kernels.json again")

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

import rcg_lightning.core.guidance
from rcg_lightning.config import ConfigMixin, HubName, construct, describe
from rcg_lightning.core.diffusion import Velocity
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, LinspaceSpacing
from rcg_lightning.core.schedule import CosineSchedule, LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.rdm_mlp import ModulatedMLP


class Tool(ConfigMixin):
    def __init__(self, size: int, folder: Path | None = None, *, parts=(), table=None, **more) -> None:
        self.size, self.folder, self.parts, self.table, self.more = size, folder, parts, table, more


class Finer(Tool):
    """Inherits its constructor."""


class Own(Tool):
    def __init__(self, name: str) -> None:
        super().__init__(len(name))


@pytest.mark.parametrize(
    "original",
    [
        DDIM(25, eta=0.5, spacing=LinspaceSpacing(), clip=1.0),
        DDIM(),
        Guidance(2.0, interval=(0.1, 0.9), channels=3),
        EMA({"fast": 0.9, "slow": 0.99}, warmup=True),
        Denoiser(ModulatedMLP(8, depth=1), LinearSchedule(10), Velocity(), learned_variance=True),
        Conditioner(dim=4, drop=0.2, noise=0.1),
        Finer(3, parts=[Own("abc"), [1, 2.5, None, True]], table={"a": "b"}, extra=1),
    ],
    ids=lambda original: type(original).__name__,
)
def test_a_description_is_plain_data_and_rebuilds_the_object(original):
    description = json.loads(json.dumps(describe(original)))
    again = construct(description)
    assert type(again) is type(original)
    assert describe(again) == description


def test_only_given_arguments_are_described():
    assert describe(DDIM(25)) == {"class_path": "rcg_lightning.core.samplers.DDIM", "init_args": {"steps": 25}}
    assert describe(CosineSchedule())["init_args"] == {}
    path = f"{__name__}.Own"
    assert describe(Own("abcd")) == {"class_path": path, "init_args": {"name": "abcd"}}  # not its base's argument


def test_paths_stay_on_their_machine():
    original = Tool(1, Path("/data/secret"), parts=[Path("a")], table={"b": Path("c")})
    arguments = describe(original)["init_args"]
    assert arguments == {"size": 1, "folder": None, "parts": [None], "table": {"b": None}}
    assert construct(describe(original)).folder is None


class Fetched(ConfigMixin):
    def __init__(self, hub: HubName | None = None, folders: list[Path] | None = None) -> None:
        self.hub, self.folders = hub, folders


def test_a_description_holds_no_location_and_none_is_followed():
    original = Fetched("someone/something", [Path("/data")])
    assert describe(original)["init_args"] == {"hub": None, "folders": None}
    kept = construct(describe(original))
    assert (kept.hub, kept.folders) == (None, None)
    for arguments in ({"hub": "someone/something"}, {"folders": ["/etc"]}):
        with pytest.raises(UserError, match=r"names a location, Fetched.*do not use it"):
            construct({"class_path": f"{__name__}.Fetched", "init_args": arguments})


def test_no_module_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in ("planted.Net", "rcg_lightning.planted.Net", "wave.Wave_read", "rcg_lightning.cli.__main__.Net"):
        with pytest.raises(UserError, match="no class"):
            construct({"class_path": path})
    assert not (tmp_path / "witness").exists()
    assert not {"planted", "wave"} & sys.modules.keys()


def test_a_module_of_this_package_is_imported_on_demand(monkeypatch):
    monkeypatch.setattr(rcg_lightning.core, "guidance", rcg_lightning.core.guidance)  # both are restored
    monkeypatch.delitem(sys.modules, "rcg_lightning.core.guidance")
    assert construct({"class_path": "rcg_lightning.core.guidance.Guidance", "init_args": {"scale": 2.0}}).scale == 2


def test_a_value_without_a_plain_description_is_rejected():
    for value in (torch.zeros(2), lambda: 0, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="no plain description"):
            describe(Tool(1, parts=[value]))


def test_copies_and_pickles_keep_the_record():
    original = DDIM(25, eta=0.5)
    assert describe(copy.deepcopy(original)) == describe(original)
    assert describe(pickle.loads(pickle.dumps(original))) == describe(original)


CALLED = []


def dangerous(**arguments):
    CALLED.append(arguments)


class NotDescribed:
    def __init__(self, **arguments) -> None:
        CALLED.append(arguments)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.nn.Linear",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "rcg_lightning.config.construct",
        "rcg_lightning.config.Path",
        f"{__name__}.dangerous",
        f"{__name__}.NotDescribed",
        f"{__name__}.CALLED",
    ],
)
def test_nothing_but_described_classes_is_ever_called(path, tmp_path):
    witness = tmp_path / "witness"
    for arguments in ({}, {"command": f"touch {witness}"}, {"in_features": 1, "out_features": 1}):
        description = {"class_path": path, "init_args": arguments}
        for hidden in (description, [description], {"key": description}, within(description)):
            with pytest.raises(UserError, match="not a class"):
                construct(hidden)
    assert CALLED == []
    assert not witness.exists()


def within(description):
    return {"class_path": f"{__name__}.Tool", "init_args": {"size": 1, "parts": [description]}}


@pytest.mark.parametrize("path", ["nowhere.Nothing", "rcg_lightning.config.Nothing", "Nothing", "", ".Tool", 5, None])
def test_an_unknown_class_is_an_error(path):
    with pytest.raises(UserError, match="no class"):
        construct({"class_path": path})


@pytest.mark.parametrize("arguments", ["size", ["size"], 3])
def test_arguments_that_are_no_dictionary_are_an_error(arguments):
    with pytest.raises(UserError, match="no dictionary"):
        construct({"class_path": f"{__name__}.Tool", "init_args": arguments})


def test_wrong_arguments_are_an_error():
    with pytest.raises(UserError, match="cannot be rebuilt"):
        construct({"class_path": f"{__name__}.Own", "init_args": {"nome": "x"}})


def test_plain_data_is_its_own_description():
    for value in (1, 2.5, "text", None, True, [1, [2]], {"a": {"b": [3]}}):
        assert construct(value) == value

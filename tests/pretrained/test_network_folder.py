import json

import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import MLPHead, Projected
from rcg_lightning.pretrained.network_folder import load_network, save_network


def network():
    return Projected(SmallConvNet(1, 8), MLPHead(64, 16, 4, 2)).eval()


def test_a_loaded_network_equals_the_saved_one(tmp_path):
    original = network()
    save_network(tmp_path / "deep" / "encoder", original, {"size": None, "head": True})
    again, settings = load_network(tmp_path / "deep" / "encoder")
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.eval()(image), original(image))
    assert settings == {"size": None, "head": True}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["encoder"]


def test_loading_takes_no_random_numbers(tmp_path):
    save_network(tmp_path / "n", network(), {})
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_network(tmp_path / "n")
    assert torch.equal(torch.rand(1), expected)


def test_only_a_network_folder_is_replaced(tmp_path):
    save_network(tmp_path / "n", network(), {"v": 1})
    save_network(tmp_path / "n", network(), {"v": 2})
    assert load_network(tmp_path / "n")[1] == {"v": 2}
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a network folder"):
        save_network(other, network(), {})
    assert (other / "thesis.txt").read_text() == "precious"


def test_failed_write_leaves_the_old_network(tmp_path, monkeypatch):
    save_network(tmp_path / "n", network(), {"v": 1})

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("rcg_lightning.pretrained.network_folder.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(tmp_path / "n", network(), {"v": 2})
    assert load_network(tmp_path / "n")[1] == {"v": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_network_without_a_description_is_a_programming_error(tmp_path):
    with pytest.raises(TypeError, match="ConfigMixin"):
        save_network(tmp_path / "n", nn.Linear(1, 1), {})


@pytest.mark.parametrize(
    "damage", ["nothing", "no weights", "other weights", "broken", "incomplete", "other network", "newer"]
)
def test_damaged_folders_are_rejected_in_one_line(tmp_path, damage):
    folder = tmp_path / "n"
    save_network(folder, network(), {})
    path = folder / "network.json"
    description = json.loads(path.read_text())
    if damage == "nothing":
        path.unlink()
    elif damage == "no weights":
        (folder / "weights.safetensors").unlink()
    elif damage == "other weights":
        content = bytearray((folder / "weights.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(bytes(content))
    elif damage == "broken":
        path.write_text("{")
    elif damage == "incomplete":
        path.write_text("{}")
    elif damage == "other network":
        description["network"]["init_args"]["head"]["init_args"]["hidden"] = 17
        path.write_text(json.dumps(description))
    else:
        path.write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(UserError) as caught:
        load_network(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_settings_that_are_no_names_and_values_name_the_file(tmp_path):
    save_network(tmp_path / "n", network(), {"head": True})
    path = tmp_path / "n" / "network.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps({**content, "settings": [1]}))
    with pytest.raises(UserError, match=r"settings in .*network\.json"):
        load_network(tmp_path / "n")


def test_a_description_of_another_size_or_class_names_the_folder(tmp_path):
    save_network(tmp_path / "n", network(), {})
    path = tmp_path / "n" / "network.json"
    right = path.read_text()
    head = json.loads(right)["network"]["init_args"]["head"]["init_args"]
    wrong = [json.loads(right) for _ in range(2)]
    wrong[0]["network"]["init_args"]["head"]["init_args"] = {**head, next(iter(head)): 65_000}
    wrong[1]["network"] = {"class_path": "rcg_lightning.core.guidance.Guidance", "init_args": {}}
    for description, message in zip(wrong, ("tensors differ", "does not describe a network")):
        del description["checksum"]  # as in a made-up file
        path.write_text(json.dumps(description))
        with pytest.raises(UserError, match=message) as error:
            load_network(tmp_path / "n")
        assert str(tmp_path / "n") in str(error.value)

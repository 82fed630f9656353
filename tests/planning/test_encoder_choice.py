"""The choice of an encoder by what is at hand; no network, and no waiting for one."""

import time

import pytest

from rcg_lightning.errors import UserError
from rcg_lightning.planning import encoder_choice
from rcg_lightning.planning.data_report import DataReport
from rcg_lightning.planning.encoder_choice import choose_encoder, is_at_hand
from rcg_lightning.planning.machine import Machine

CPU, GPU = Machine("cpu", "2 CPU cores", 2, 10**10), Machine("cuda", "a GPU", 2, 10**11)


def report(images, grey=0):
    return DataReport(train=images - 50, evaluation=50, sample=100, grey=grey)


@pytest.fixture
def at_hand(monkeypatch):
    """Set whether DINOv2's weights and EfficientNet-lite0's are at hand."""

    def choose(hub, lite=False, loads=True):
        monkeypatch.setattr(encoder_choice, "loads", lambda name, size: loads)
        monkeypatch.setattr(encoder_choice, "is_at_hand", lambda name: hub)
        monkeypatch.setattr(encoder_choice.efficientnet_lite, "is_installed", lambda: lite)
        monkeypatch.setattr(encoder_choice.efficientnet_lite, "weights", lambda: "weights.pth")

    return choose


def test_a_pretrained_encoder_where_its_weights_are_at_hand(at_hand):
    at_hand(hub=True)
    small, large = (choose_encoder("auto", report(300), machine, 32) for machine in (CPU, GPU))
    assert (small.kind, small.size, large.size) == ("timm", 112, 224)
    assert "dinov2" in small.name
    assert not small.saw_labels
    assert small.configured()["init_args"] == {"name": small.name, "size": 112}


def test_one_that_saw_labels_says_so(at_hand):
    at_hand(hub=False, lite=True)
    found = choose_encoder("auto", report(3000), CPU, 32)
    assert found.saw_labels
    assert "labels of ImageNet" in found.reason


@pytest.mark.parametrize(
    ("images", "grey", "size", "kind"),
    [(499, 0, 32, "principal"), (500, 0, 32, "moco"), (3000, 100, 32, "moco"), (3000, 0, 8, "moco")],
)
def test_without_weights_one_is_trained_here(images, grey, size, kind, at_hand):
    at_hand(hub=False)
    found = choose_encoder("auto", report(images, grey), CPU, size)
    assert found.kind == kind
    assert found.reason
    assert found.trained_here


def test_a_download_that_fails_is_no_failure(at_hand):
    at_hand(hub=True, loads=False)
    assert choose_encoder("auto", report(3000), CPU, 32).kind == "moco"


def test_offline_nothing_waits(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    start = time.monotonic()
    assert not is_at_hand(encoder_choice.DEFAULT)
    assert time.monotonic() - start < 1


def test_encoders_that_do_not_exist(tmp_path):
    for wanted, message in (
        ("vit_nonsense", "timm has no model 'vit_nonsense'"),
        ("runs/nothing", "--encoder runs/nothing is no network folder"),
        (f"tf_efficientnet_lite0={tmp_path}/none.pth", "no file"),
    ):
        with pytest.raises(UserError, match=message):
            choose_encoder(wanted, report(3000), CPU, 32)

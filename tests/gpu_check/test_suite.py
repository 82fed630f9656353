"""The parts, their budgets, and how speed is held against peaks and goals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.gpu_check.cards import peak_rate
from rcg_lightning.gpu_check.cifar10 import clock, source_of
from rcg_lightning.gpu_check.suite import BUDGETS, Settings, budgets, chosen, parts
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.gpu_check.throughput import Throughput, measurements

SETTINGS = Settings(rehearse=False, minutes=0.35, images=None, folder=Path("scratch"), out=Path("out"))


def with_images(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    return replace(SETTINGS, images=tmp_path)


def test_all_parts_take_eight_minutes(tmp_path):
    settings = with_images(tmp_path)
    assert chosen([], settings) == list(BUDGETS)
    assert sum(budgets(BUDGETS, settings).values()) <= 480


def test_without_its_images_a_part_is_left_out_or_rejected():
    assert "cifar10" not in chosen([], SETTINGS)
    assert "cifar10" in chosen([], replace(SETTINGS, rehearse=True))
    with pytest.raises(UserError, match="give --images"):
        chosen(["cifar10"], SETTINGS)


def test_every_part_has_checks_in_the_order_asked(tmp_path):
    target = Target(torch.device("cpu"), rehearsal=True)
    made = parts(["waits", "commands"], replace(SETTINGS, folder=tmp_path), target, lambda name, words: None)
    assert [part.name for part in made] == ["waits", "commands"]
    assert len(list(made[1].trials())) == 4


def test_longer_trainings_have_a_longer_budget():
    longer = replace(SETTINGS, minutes=2.0)
    assert budgets(["cifar10"], longer)["cifar10"] > budgets(["cifar10"], SETTINGS)["cifar10"] + 400


@pytest.mark.parametrize(
    ("card", "precision", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA L40S", "tf32", 183e12),
        ("NVIDIA L4", "float32", 30.3e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("NVIDIA Unknown", "bf16", None),
    ],
)
def test_peaks_by_name(card, precision, rate):
    assert peak_rate(card, precision) == rate


def test_goals_are_for_the_cards_they_were_set_for():
    check = Throughput(Target(torch.device("cpu"), rehearsal=True))
    assert check.against(5.0, 4.0) == "goal 4/s met"
    assert check.against(3.0, 4.0) == "goal 4/s not met"
    assert check.against(3.0, None) == ""
    assert Throughput(Target(torch.device("cpu"))).against(3.0, 4.0) == ""


def test_measurements_with_a_goal_come_first():
    listed = measurements()
    assert len({measurement.name for measurement in listed}) == len(listed)
    assert [m.goal for m in listed[:2]] == [250_000, 250_000]


def test_folders_of_cifar10(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "jpeg" / part).mkdir(parents=True)
    assert source_of(with_images(tmp_path).images) == ["--data.source.root", tmp_path]
    assert "ImageFolder" in source_of(tmp_path / "jpeg")
    with pytest.raises(UserError, match="unpack CIFAR-10"):
        source_of(tmp_path / "jpeg" / "train")


def test_durations():
    assert clock(21) == "00:00:00:21"
    assert clock(3723) == "00:01:02:03"

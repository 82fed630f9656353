"""Damage is found: every flipped byte either changes nothing that is read or is reported."""

import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from rcg_lightning import integrity
from rcg_lightning.errors import UserError
from rcg_lightning.integrity import check_torch_file, unless_verified, write_sums
from rcg_lightning.pretrained.checkpoints import read_checkpoint


def flip(path, at, bit=1):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"weight": torch.arange(24.0), "optimizer": {"step": torch.ones(3)}, "step": 7}, path)
    return path


def same(content):
    return (
        torch.equal(content["weight"], torch.arange(24.0))
        and content["step"] == 7
        and torch.equal(content["optimizer"]["step"], torch.ones(3))
    )


def test_no_flipped_byte_of_a_checkpoint_gives_other_values(checkpoint):
    assert same(read_checkpoint(checkpoint, "a stage"))
    messages = []
    for at in range(os.path.getsize(checkpoint)):
        flip(checkpoint, at)
        try:
            assert same(read_checkpoint(checkpoint, "a stage")), f"byte {at} changed a value without a word"
        except UserError as error:
            messages.append(str(error))
        flip(checkpoint, at)
    assert len(messages) > 500  # the rest is padding between records
    assert all(str(checkpoint) in message for message in messages)


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_reported(checkpoint, left):
    os.truncate(checkpoint, int(os.path.getsize(checkpoint) * left))
    with pytest.raises(UserError, match=r"last\.ckpt"):
        read_checkpoint(checkpoint, "a stage")


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_rejected(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
    with pytest.raises(UserError, match=r"bomb.ckpt .* claims 1048576 bytes"):
        check_torch_file(path)


def test_a_checkpoint_without_checksums_passes(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check_torch_file(tmp_path / "plain.pt")
    torch.save({"weight": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_torch_file(tmp_path / "old.pt")


def test_a_file_is_checked_again_only_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "MARKED", 4)
    monkeypatch.setattr(integrity, "_TICK", -1.0)
    path, checks = tmp_path / "file", []
    path.write_bytes(b"content")

    def forget():  # as a new process
        monkeypatch.setattr(integrity, "_passed", set())

    def check():
        checks.append(path.read_bytes())
        if checks[-1] != b"content":
            raise UserError("damaged")

    for _ in range(2):
        unless_verified([path], check, "test")
        forget()
    assert len(checks) == 1
    path.write_bytes(b"Content")
    for _ in range(2):  # a failed check is not remembered
        with pytest.raises(UserError):
            unless_verified([path], check, "test")
    assert len(checks) == 3


def test_a_checkpoint_that_passed_another_check_is_compared_with_its_checksums(checkpoint, monkeypatch):
    monkeypatch.setattr(integrity, "_TICK", -1.0)  # the file is older than the clock's tick
    flip(checkpoint, checkpoint.read_bytes().index(torch.arange(24.0).numpy().tobytes()) + 5)
    with pytest.raises(UserError, match="does not match its checksum"):
        read_checkpoint(checkpoint, "a stage")


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "_TICK", 60.0)
    path, checks = tmp_path / "file", []
    path.write_bytes(b"content")
    for _ in range(2):
        unless_verified([path], lambda: checks.append(1), "test")
    assert len(checks) == 2


def test_a_list_of_checksums_next_to_weights_counts(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(9)}, path)
    read_checkpoint(path, "a model")
    write_sums(tmp_path)
    read_checkpoint(path, "a model")
    (tmp_path / "other.txt").write_text("not listed")
    flip(path, os.path.getsize(path) - 1)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged, by SHA256SUMS"):
        read_checkpoint(path, "a model")

"""Messages about files without readable weights."""

import pickle
from datetime import datetime

import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.checkpoints import read_checkpoint


def text(path):
    path.write_text("# Notes\n")


def cut(path):
    torch.save({"weight": torch.zeros(4000)}, path)
    path.write_bytes(path.read_bytes()[:5000])


def objects(path):
    path.write_bytes(pickle.dumps({"when": datetime(2024, 1, 1)}, protocol=2))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (text, "its content is something else"),
        (cut, "fetch or copy it again"),
        (objects, "objects in addition to weights"),
    ],
)
def test_one_line_without_torchs_advice(tmp_path, write, message):
    write(tmp_path / "file.pth")
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(tmp_path / "file.pth", "the model")
    assert "weights_only" not in str(error.value)
    assert "file.pth" in str(error.value)

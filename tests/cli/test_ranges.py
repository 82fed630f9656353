"""Numbers on the command line that cannot work are rejected before anything is loaded."""

import importlib

import pytest

from rcg_lightning.arguments import PositiveInt, check_arguments
from rcg_lightning.cli.parsing import call
from rcg_lightning.errors import UserError

OUT_OF_RANGE = {
    "bench": {"times": 0, "threads": -1},
    "cluster": {"count": 0, "restarts": 0, "max_images": -1},
    "evaluate": {
        "number": 0,
        "seeds": 0,
        "batch_size": 0,
        "tile": 0,
        "prior_tile": 0,
        "first_seed": 2**63,
        "guidance": -1.0,
    },
    "extract": {"shard_rows": 0, "num_nodes": 0, "devices": 0},
    "instances": {"count": 0, "max_images": 0},
    "neighbours": {"k": 0},
    "pipeline": {"seeds": 0},
    "principal": {"dim": 0, "max_images": 1},
    "probe": {"neighbours": 0, "regularisation": -1.0, "max_images": 1},
    "reconstruct": {"number": 1, "images": -1, "batch_size": -1},
    "sample": {
        "number": 0,
        "guidance": float("nan"),
        "interval": [0, 2],
        "guided_channels": 0,
        "tile": 0,
        "prior_tile": 0,
        "devices": 0,
    },
    "sweep": {"number": 1, "steps": [0], "eta": [2.0], "temperature": [-1.0], "guidance": [-1.0], "batch_size": 0},
    "tag": {"samples": 0, "nearest": 0, "tags": 0, "neighbours": 0, "show": -1, "first_seed": -(2**63)},
    "word_vectors": {"dim": 0, "window": 0, "epochs": 0, "negative": 0, "threads": 0},
}


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [(c, name, value) for c, wrong in OUT_OF_RANGE.items() for name, value in wrong.items()],
)
def test_numbers_out_of_range_are_rejected(command, name, value):
    function = getattr(importlib.import_module(f"rcg_lightning.cli.{command}"), command)
    with pytest.raises(UserError, match=f"^--{name}.* should be "):
        check_arguments(function, {name: value}, "--")


def test_a_command_checks_its_arguments_before_it_runs():
    called = []

    def command(number: PositiveInt = 1) -> None:
        called.append(number)

    call(command, "command", ["--number", "3"], names=False)
    with pytest.raises(UserError, match=r"^--number should be at least 1, not 0$"):
        call(command, "command", ["--number", "0"], names=False)
    assert called == [3]

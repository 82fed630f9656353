"""Trainings that diverge: they stop, say so, and leave nothing that is not finite."""

from functools import partial
from pathlib import Path

import torch

from .cases import Case, expect, expect_one_line
from .process import rcg
from .world import STAGES, World

EXPECTED = "rc 2, one line that names step and learning rate, no checkpoint that is not finite"
STEPS = ["--trainer.max_steps", "30", "--trainer.max_skipped_steps", "3"]
WORDS = ("step", "learning rate")


def divergences(world: World, seed: int) -> list[Case]:
    """Cases of a learning rate of 10^30 in every stage."""
    return [Case("divergence", name, EXPECTED, partial(_diverge, world, name), (name,)) for name in STAGES]


def _diverge(world: World, name: str, folder: Path) -> None:
    out = folder / "run"
    expect_one_line(rcg([*world.argv(name, out), "--model.optimizer.lr", "1e30", *STEPS], folder), WORDS)
    for path in out.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        state = {key: value for key, value in content["state_dict"].items() if isinstance(value, torch.Tensor)}
        wrong = [key for key, value in state.items() if not value.isfinite().all()]
        expect(not wrong, f"{path.name} holds values that are not finite: {wrong[:3]}")

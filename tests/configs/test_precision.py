"""Configs leave the precision to the trainer, or give the reason next to it."""

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
LINES = [
    (path.relative_to(CONFIGS), line.strip())
    for path in sorted(CONFIGS.rglob("*.yaml"))
    for line in path.read_text().splitlines()
    if "precision:" in line.partition("#")[0]
]


def test_there_are_recipes_of_float32():
    assert len(LINES) > 10


@pytest.mark.parametrize(("path", "line"), LINES, ids=lambda value: str(value))
def test_a_precision_has_its_reason_next_to_it_and_is_tf32_on_gpus(path, line):
    assert line.startswith("precision: 32-true  # ")
    assert "on GPUs in TF32" in line

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.comparison import read_entries
from rcg_lightning.evaluation.image_grid import image_grid, labelled_grid
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.report import EVALUATION, REAL, RESAMPLED, Row, reference_rows, table, write_results
from rcg_lightning.evaluation.results import read_content


def row(condition, seed, fd, **more):
    return Row(condition, seed, {"fd": fd, "is": 5.0, "precision": 0.5, "recall": 0.25}, 100, 2.0, **more)


def test_results_are_written_as_rows_table_and_image(tmp_path, samples):
    rows = [row("none", 0, 1.0, samples=samples), row("representation", 0, 0.25, samples=samples)]
    write_results(tmp_path / "out", rows, "FD in the features of a classifier.")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written[1] == {
        "condition": "representation",
        "seed": 0,
        "metrics": {"fd": 0.25, "is": 5.0, "precision": 0.5, "recall": 0.25},
        "n": 100,
        "seconds": 2.0,
    }
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.startswith("FD in the features of a classifier.\n\n| condition |")
    assert Image.open(tmp_path / "out" / "grid.png").width > 18 * 40


def test_seeds_share_a_line_and_reference_values_come_last():
    text = table([row(REAL, 0, 0.1), row("none", 0, 1.0), row("none", 1, 2.0)])
    *_, none, real = text.splitlines()
    assert none == "| none | 100 | 2 | 1.500 ± 0.707 | – | 5.00 ± 0.00 | 0.50 ± 0.00 / 0.25 ± 0.00 | – | 2.0 ± 0.0 |"
    assert real.startswith("| *reference value: real* | 100 | 1 | 0.100 |")


def test_small_distances_keep_their_digits():
    """The scale of a distance is that of the features: those of unit length lie within hundredths."""
    distances = {"none": 0.01042, "cluster": 0.00962, "class": 1.9e-16, REAL: 0.0000312}
    text = table([row(condition, 0, distance) for condition, distance in distances.items()])
    assert [line.split(" | ")[3] for line in text.splitlines()[2:]] == ["0.010", "0.0096", "0.000", "3.1e-05"]


def test_reference_values_are_rows(data, extractor):
    rows = reference_rows(data, reference_of(data, extractor, None), extractor, n=300)
    assert {real.condition for real in rows} == {REAL}
    assert [(real.part, real.n) for real in rows] == [(RESAMPLED, 300), (EVALUATION, 200)]
    assert rows[0].metrics["copy_rate"] == 1.0
    assert rows[1].metrics["copy_rate"] < 0.05
    assert rows[1].to_dict()["part"] == EVALUATION
    assert rows[0].samples.shape == (18, 1, 8, 8)
    assert reference_rows(data, reference_of(data, extractor, None), extractor, n=1) == []


def test_a_grid_shows_every_pixel_enlarged():
    images = torch.arange(3 * 4, dtype=torch.uint8).view(3, 1, 2, 2) * 20
    grid = image_grid(images, columns=2, scale=3, gap=1)
    assert grid.shape == (2 * 6 + 1, 2 * 6 + 1, 3)
    assert (grid[:3, :3] == 0).all()
    assert (grid[3:6, 7 + 3 : 13] == images[1, 0, 1, 1].item()).all()
    assert (grid[7:, 7:] == 255).all()  # no fourth image
    colour = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    colour[0, 1] = 200
    assert (image_grid(colour, 4, scale=1) == np.array([0, 200, 0])).all()


def test_labels_are_left_of_their_row(samples):
    short, long = (labelled_grid([(label, samples)], 4) for label in ("a", "a much longer label"))
    assert long.width > short.width
    assert short.height == long.height
    with pytest.raises(UserError, match="at least one row"):
        labelled_grid([])


@pytest.mark.parametrize("read", [read_content, read_entries])
def test_a_file_of_brackets_is_named(tmp_path, read):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"x\.json cannot be read"):
        read(tmp_path / "x.json")


def test_a_row_whose_samples_are_no_path_is_rejected(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"condition": "a", "seed": 0, "samples": 7}]))
    with pytest.raises(UserError, match=r"x\.json should be a JSON list of rows"):
        read_entries(tmp_path / "x.json")

"""Tables, plots and the best setting of a sweep."""

import math

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.sweep_plots import Point, best, image, metrics_of, plots, save_plots, sweep_table

METRICS = ("fd", "fd_eval", "is", "precision", "recall", "copy_rate", "nearest")


def point(setting, fd, seeds=1):
    metrics = {"fd": fd, "fd_eval": fd + 1, "is": 10 - fd, "precision": 1 / (1 + fd), "recall": fd / (1 + fd)}
    metrics |= {"copy_rate": 0.0, "nearest": 0.3, "is_std": 0.1}
    return Point(
        setting, tuple({name: value + 0.2 * seed for name, value in metrics.items()} for seed in range(seeds)), 9
    )


def guided(seeds=1):
    return [point({"guidance": scale}, (scale - 2) ** 2 + 1, seeds) for scale in (3.0, 1.0, 2.0)]


def test_best_knows_the_direction_of_a_metric():
    points = guided()
    for metric in ("fd", "fd_eval", "is", "precision"):
        assert best(points, metric).setting == {"guidance": 2.0}
    assert best(points, "recall").setting == {"guidance": 3.0}  # the first of two equals
    with pytest.raises(UserError, match="'kd' was not measured: choose one of fd, fd_eval, is"):
        best(points, "kd")


def test_metrics_come_in_one_order_without_spreads_of_splits():
    assert tuple(metrics_of(guided())) == METRICS


def test_table_has_a_row_per_setting_and_the_best_in_bold():
    lines = sweep_table(guided(), "fd").splitlines()
    assert lines[0].startswith("| guidance | FD | FD to evaluation | IS | precision | recall | copy rate |")
    assert lines[2].startswith("| 3 | 2.000 | 3.000 | 8.00 |")
    assert [line.startswith("| **") for line in lines[2:]] == [False, False, True]
    assert "2.100 ± 0.141" in sweep_table(guided(seeds=2), "fd")


def test_mean_and_deviation_over_seeds():
    several = point({"eta": 0.0}, 1.0, seeds=2)
    assert several.mean("fd") == pytest.approx(1.1)
    assert several.deviation("fd") == pytest.approx(0.2 / 2**0.5)
    assert guided()[0].deviation("fd") == 0
    assert math.isnan(several.mean("coverage"))


def values_of(figure):
    """Return (x, y) of each line of each panel, by the panel's label."""
    return {
        panel.get_ylabel(): [line.get_xydata() for line in panel.lines if len(line.get_xydata()) > 1]
        for panel in figure.axes
        if panel.get_visible()
    }


def test_guidance_is_plotted_against_metrics_and_as_trade_offs():
    figures = plots(guided(), "a note")
    assert set(figures) == {"guidance", "guidance_fd_is", "guidance_precision_recall"}
    panels = values_of(figures["guidance"])
    np.testing.assert_allclose(panels["FD / FD to evaluation (lower is better)"][0], [[1, 2], [2, 1], [3, 2]])
    assert set(panels) > {"IS (higher is better)", "precision / recall (higher is better)"}
    trade = figures["guidance_fd_is"].axes[0]
    assert trade.get_xlabel() == "IS (higher is better)"
    np.testing.assert_allclose(
        values_of(figures["guidance_fd_is"])["FD (lower is better)"][0], [[8, 2], [9, 1], [8, 2]]
    )
    assert [text.get_text() for text in trade.texts] == ["1", "2", "3"]


def test_other_settings_are_lines_and_names_are_ticks():
    points = [
        point({"ema": name, "steps": steps}, fd + steps / 10)
        for name, fd in (("short", 2.0), ("long", 1.0))
        for steps in (5, 10)
    ]
    figures = plots(points)
    assert set(figures) == {"ema", "steps"}  # neither is a trade-off
    panel = figures["ema"].axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["short", "long"]
    assert [text.get_text() for text in figures["ema"].legends[0].get_texts()] == ["steps 5", "steps 10"]
    assert len(values_of(figures["steps"])["FD (lower is better)"]) == 2


def test_settings_varied_one_by_one_make_one_line_each():
    base = {"guidance": 1.0, "steps": 25}
    points = [point(base | {"guidance": g}, g) for g in (1.0, 2.0, 3.0)] + [point(base | {"steps": 5}, 4.0)]
    figures = plots(points)
    assert len(values_of(figures["guidance"])["IS (higher is better)"]) == 1
    np.testing.assert_allclose(values_of(figures["steps"])["IS (higher is better)"][0], [[5, 6], [25, 9]])


def test_a_single_setting_has_no_plots():
    assert plots(guided()[:1]) == {}
    with pytest.raises(UserError, match="without settings"):
        sweep_table([], "fd")


def test_plots_are_images(tmp_path):
    images = {name: image(figure) for name, figure in plots(guided(seeds=2), "n 9").items()}
    paths = save_plots(images, tmp_path)
    assert [path.name for path in paths] == [f"{name}.png" for name in images]
    for path, pixels in zip(paths, images.values()):
        assert pixels.dtype == np.uint8
        assert np.array_equal(np.asarray(Image.open(path)), pixels)
        assert 0.7 < (pixels == 255).mean() < 0.99  # something is drawn, and most of the image is background

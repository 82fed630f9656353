"""A run's report: one page of what its steps have written."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rcg_lightning.cli.main import main
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.curves import logged_scalars, panels_of
from rcg_lightning.pipeline.run_report import report_of


def write_scalars(folder, **curves):
    writer = EventFileWriter(str(folder))
    for tag, values in curves.items():
        for step, value in enumerate(values):
            summary = Summary(value=[Summary.Value(tag=tag.replace("_", "/"), simple_value=value)])
            writer.add_event(Event(step=step, summary=summary, wall_time=step))
    writer.close()


def write_image(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(path)


@pytest.fixture
def run(tmp_path):
    """The folder of a run: a trained generator, a gallery and a verdict."""
    run = tmp_path / "my <b>images"
    write_image(run / "gallery" / "samples.png", 10)
    write_image(run / "gallery" / "nearest.png", 20)
    (run / "generator").mkdir()
    write_scalars(run / "generator", train_loss=[100.0, 10.0, 0.5], val_loss=[90.0, 8.0], epoch=[0.0, 1.0])
    (run / "generator" / "config.yaml").write_text("model: {width: 32}  # <script>\n")
    record = {"key": "k", "command": ["fit", "--config", "a b"], "spent": 90.0, "seconds": 90.0, "files": {}}
    (run / ".generator.json").write_text(json.dumps(record))
    (run / ".rdm.json").write_text(json.dumps({"key": "k", "command": ["fit"], "spent": 0, "seconds": None}))
    (run / "verdict").mkdir()
    (run / "verdict" / "verdict.md").write_text("- **generator: good.** FD 1.\n")
    return run


def test_the_page_holds_everything(run):
    page = report_of(run)
    text, html = (run / "report.md").read_text(), page.read_text()
    assert "generator: good" in text
    assert "| generator | 1 min 30 s | `rcg fit --config 'a b'` |" in text
    assert "rdm" not in text  # it has not finished
    assert "thumbnails" in html
    sources = re.findall(r'<img[^>]*src="([^"]*)"', html)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]) == (run / "samples.png").read_bytes()
    assert (run / "generator" / "curves.png").is_file()
    assert (run / "samples.png").read_bytes() == (run / "gallery" / "samples.png").read_bytes()
    assert "<script" not in html  # neither settings nor names become HTML
    assert "my <b>" not in html


def test_it_may_be_written_again_and_grows(run):
    report_of(run)
    write_image(run / "gallery" / "variations.png", 30)
    (run / "data").mkdir()
    write_image(run / "data" / "sheet (1).png", 40)
    (run / "data" / "section.md").write_text("300 images.\n\n![sheet](sheet%20%281%29.png)\n")
    html = report_of(run).read_text()
    assert "Variations" in html
    assert "<h2>Data</h2>" in html
    assert html.count("data:image/png;base64,") == 5


def test_while_a_training_goes_on_its_newest_grid_is_shown(tmp_path):
    for step, shade in ((100, 1), (1200, 2)):
        write_image(tmp_path / "generator" / "grids" / f"samples-{step:07d}.png", shade)
    report_of(tmp_path)
    assert np.asarray(Image.open(tmp_path / "samples.png"))[0, 0] == 2


def test_a_planned_encoder_that_saw_labels_is_named(run):
    encoder = {"kind": "timm", "name": "some_net", "reason": "its weights are here", "saw_labels": True}
    (run / "plan.json").write_text(json.dumps({"data": "/my_images", "images": 300, "encoder": encoder}))
    report_of(run)
    text = (run / "report.md").read_text()
    assert "- encoder: `some_net`, since its weights are here; it was trained with labels" in text
    assert "- data: `/my_images`" in text


def test_settings_of_earlier_runs_are_left_out(run):
    (run / "generator.until-12345678").mkdir()
    (run / "generator.until-12345678" / "config.yaml").write_text("old: 1\n")
    report_of(run)
    assert "old: 1" not in (run / "report.md").read_text()


@pytest.fixture
def seeds(tmp_path):
    """The folder of a run of two seeds: each has a generator, samples and a verdict."""
    for seed, grade in enumerate(("good", "broken")):
        folder = tmp_path / f"seed{seed}"
        write_image(folder / "gallery" / "samples.png", seed)
        (folder / "generator").mkdir()
        (folder / "generator" / "last.ckpt").touch()
        record = {"key": "k", "command": ["fit"], "spent": 8.0, "seconds": 8.0, "files": {}}
        (folder / ".generator.json").write_text(json.dumps(record))
        (folder / "verdict").mkdir()
        (folder / "verdict" / "verdict.md").write_text(f"- **generator: {grade}.** FD 1.\n")
    (tmp_path / "plan.json").write_text(json.dumps({"data": "digits", "seeds": 2}))
    return tmp_path


def test_images_are_those_of_the_first_seed(seeds):
    report_of(seeds)
    assert (seeds / "samples.png").read_bytes() == (seeds / "seed0" / "gallery" / "samples.png").read_bytes()
    assert "- seeds: 2" in (seeds / "report.md").read_text()


def test_verdicts_and_steps_of_every_seed_are_shown(seeds):
    report_of(seeds)
    text = (seeds / "report.md").read_text()
    assert "### verdict, seed 0\n\n- **generator: good.**" in text
    assert "### verdict, seed 1\n\n- **generator: broken.**" in text
    assert "| generator, seed 0 | 8 s | `rcg fit` |" in text
    assert "| generator, seed 1 | 8 s | `rcg fit` |" in text
    report_of(seeds / "seed1")
    assert "good" not in (seeds / "seed1" / "report.md").read_text()


def test_a_comparison_shows_its_samples_and_what_its_rows_are(run):
    write_image(run / "grid.png", 50)
    (run / "results.md").write_text("| condition | FD |\n|---|---|\n| oracle | 1 |\n")
    report_of(run)
    text = (run / "report.md").read_text()
    assert "(grid.png)" in text
    assert "perfect RDM" not in text  # rows of another pipeline may be anything
    (run / "plan.json").write_text(json.dumps({"wishes": {"compare": True}}))
    report_of(run)
    assert "perfect RDM" in (run / "report.md").read_text()


def test_folders_without_a_run_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        report_of(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no run"):
        report_of(tmp_path)
    assert not list(tmp_path.iterdir())


def test_curves_of_one_metric_share_a_panel(run):
    scalars = logged_scalars(run / "generator")
    assert scalars["train/loss"] == [(0, 100.0), (1, 10.0), (2, 0.5)]
    assert list(panels_of({**scalars, "train/accuracy": [], "val/other_loss": []})) == [
        "loss",
        "other_loss",
        "accuracy",
    ]
    assert panels_of(scalars)["loss"].keys() == {"train/loss", "val/loss"}


def test_the_command_needs_a_folder_only(run, capsys):
    assert main(["report", str(run)]) == 0
    assert f"{run / 'report.html'}: holds thumbnails" in capsys.readouterr().out
    assert main(["report", str(run / "nothing")]) == 2
    assert "no run at" in capsys.readouterr().err

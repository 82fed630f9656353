"""Records of finished steps: damaged ones are made again with a warning, and never pass for finished."""

import json
import os

import pytest
import yaml

from rcg_lightning.pipeline.records import CURVES, files_of, is_whole, sizes_of, unrecorded_seconds, write_record
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import read_pipeline

DAMAGES = [
    b"",
    b'{"key": "a',
    b"[]",
    b'"text"',
    b"{}",
    b'{"key": 3}',
    b'{"key": "k", "spent": "long", "seconds": null}',
]


@pytest.fixture
def run(tmp_path):
    """A pipeline of two steps and a table, whose commands write a file each and are noted in ``run.ran``."""
    steps = {"one": {"run": "extract"}, "two": {"run": "cluster --store {one}"}}
    content = {"steps": steps, "table": {"run": "compare", "rows": {"row": "two"}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    class Noted(Run):
        def all(self):
            def command(name, words):
                folder = self.root if name == "compare" else self.root / "seed0" / {"extract": "one"}.get(name, "two")
                for file in ("results.json", "results.md"):
                    (folder / file).write_text(f'"{name}: all of it"')
                self.ran.append(name)

            self.ran, lines = [], []
            self.work(command, lines.append)
            self.make_table(command, lines.append)
            return self.ran, lines

    found = Noted(read_pipeline(tmp_path / "own.yaml", ["extract", "cluster"]), tmp_path / "runs", [0])
    assert found.all()[0] == ["extract", "cluster", "compare"]
    assert found.all()[0] == []
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_redone(run, damage, caplog):
    record = run.root / "seed0" / ".one.json"
    record.write_bytes(damage)
    ran, lines = run.all()
    assert ran == ["extract"]
    assert any("its record is missing or damaged; the old folder is now one.until-unknown" in line for line in lines)
    assert str(record) in caplog.text
    assert (run.root / "seed0" / "one.until-unknown" / "results.md").is_file()
    assert run.all()[0] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stamp_makes_the_table_again(run, damage, caplog):
    (run.root / "table.json").write_bytes(damage)
    assert run.all()[0] == ["compare"]
    assert str(run.root / "table.json") in caplog.text
    assert run.all()[0] == []


@pytest.mark.parametrize("name", ["results.json", "results.md"])
def test_damaged_results_are_not_up_to_date(run, name):
    (run.root / name).write_text("")
    assert run.all()[0] == ["compare"]
    assert (run.root / name).read_text()


def test_the_table_of_an_earlier_version_is_made_again_without_a_warning(run, caplog):
    key = json.loads((run.root / "table.json").read_text())["key"]
    (run.root / "table.json").write_text(json.dumps({"key": key}))
    assert run.all()[0] == ["compare"]
    assert not caplog.records


@pytest.mark.parametrize(("content", "whole"), [(b'{"fd": 1}', True), (bytes(9), False), (b'{"fd": 1"', False)])
def test_a_json_file_of_its_size_that_cannot_be_read_is_not_whole(tmp_path, content, whole):
    (tmp_path / "results.json").write_bytes(content)
    assert is_whole(tmp_path, {"files": {"results.json": 9}}) == whole
    assert not is_whole(tmp_path, {})


def test_curves_that_a_report_draws_later_are_no_file_of_a_step(tmp_path):
    """They grow with a longer training, which would begin again if it were damaged."""
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    (tmp_path / CURVES).write_bytes(b"curves")
    assert sizes_of(tmp_path, files_of(tmp_path)) == {"last.ckpt": 7}
    assert is_whole(tmp_path, {"files": {"last.ckpt": 7, CURVES: 60}})  # as earlier versions recorded


@pytest.mark.parametrize(("seconds", "unrecorded"), [(None, 100.0), (8.0, 0.0)])
def test_only_a_killed_run_worked_after_its_record(tmp_path, seconds, unrecorded):
    """A report, or a look at the folder, may write to it long after the step has finished."""
    record, folder = tmp_path / ".generator.json", tmp_path / "generator"
    folder.mkdir()
    for path, when in ((folder / "last.ckpt", 1100.0), (folder / CURVES, 9000.0)):
        path.write_bytes(b"content")
        os.utime(path, (when, when))
    content = {"key": "k", "seconds": seconds, "files": {}}
    write_record(record, content)
    os.utime(record, (1000.0, 1000.0))
    assert unrecorded_seconds(folder, record, content) == unrecorded

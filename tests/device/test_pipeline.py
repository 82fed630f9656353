"""The demo's pipeline on the pretended device, in bf16 as on a GPU: every command, ten steps of each training."""

import json
from pathlib import Path

import pytest
import yaml

PIPELINE = Path(__file__).parents[2] / "configs" / "pipeline" / "digits.yaml"
GENERATORS = {"rdm", "none", "cluster", "class", "representation"}


def shortened(path):
    """Return the pipeline with ten steps of training and of sampling, and few samples."""
    content = yaml.safe_load(path.read_text())
    for name, step in {**content["steps"], "table": content["table"]}.items():
        step["run"] = step["run"].replace("--number 1346", "--number 64")
        if step["run"].startswith("fit"):
            step["run"] += " --trainer.max_steps 10 --trainer.enable_progress_bar false --data.batch_size 32"
        if step["run"].startswith(("fit", "extract", "compare")):
            step["run"] += " --data.source.limit 256"
        if name in GENERATORS:
            step["run"] += " --model.sampler.steps 10"
    return content


@pytest.mark.usefixtures("trains_there", "own_cache")
def test_the_demo_runs_on_the_device(rcg, tmp_path):
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(shortened(PIPELINE), sort_keys=False))
    code, output, error = rcg("pipeline", tmp_path / "digits.yaml", "--root", tmp_path)
    assert code == 0, error
    rows = json.loads((tmp_path / "digits" / "results.json").read_text())
    assert "representation" in output
    assert rows

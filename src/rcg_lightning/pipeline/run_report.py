"""The report of a run: what its steps have written, on one page. Nothing here imports torch."""

import logging
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rcg_lightning.artifacts import read_state, replacing
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.curves import curves_image, logged_scalars
from rcg_lightning.evaluation.report_page import Section, code, code_span, image, write_report
from rcg_lightning.pipeline.records import CURVES, read_record
from rcg_lightning.planning.duration import duration
from rcg_lightning.run_folder import PLAN, files_of_steps, step_parents

log = logging.getLogger(__name__)

SECTION = "section.md"  # a step's own section of the report
IMAGES = {
    "samples": "Samples of the generator.",
    "variations": "Variations: evaluation images in the first column, then samples under their representations.",
    "interpolation": "Interpolations between two evaluation images, on the left and on the right of each row.",
    "nearest": "The samples nearest to a training image, each next to that image: copies would be here.",
}
SAMPLES = ("samples/grid.png", "samples_*/grid.png", "*/grids/*.png")  # the last of these while a training goes on
COMPARED = (
    "Rows are generators of the same network and steps: without condition (none), conditioned on clusters of "
    "representations, on representations of the RDM, and, by the same generator, on those of evaluation images "
    "(oracle: what a perfect RDM would reach). The features are of the step evaluation_encoder, a second encoder that "
    "no generator has seen.\n"
)
PRIVATE = (
    "This page holds thumbnails of the images that the models were trained on or compared with: share it like the "
    "images themselves."
)


def report_of(run: Path) -> Path:
    """Write report.md, report.html and the images on them into the folder of a run; return the path of the page.

    Args:
        run: a folder of steps, as `rcg train` and `rcg pipeline` write it; steps that have not run are left out.

    Raises:
        UserError: there is no such folder, or no step has written anything.
    """
    if not run.is_dir():
        raise UserError(f"no run at {run}: give the folder of a run, such as runs/digits")
    parents, every = step_parents(run), step_parents(run, every_seed=True)
    curves = list(_curves(run, every))
    steps = _steps(every)
    sections = [
        Section("Choices", _choices(run), run),
        Section("Verdict", _verdicts(every), run),
        Section("Images", _images(run, parents), run),
        *(_own_sections(run, parents)),
        Section("Comparison", _comparison(run), run),
        Section("Curves", "\n".join(curves), run),
        Section("Steps", steps, run),
        Section("Settings", "\n".join(_settings(parents)), run),
    ]
    if not any(section.text.strip() for section in sections):
        raise UserError(
            f"{run} holds no run: give the folder that `rcg train` or `rcg pipeline` wrote, such as runs/digits"
        )
    write_report(run, run.resolve().name, [Section("About this page", PRIVATE, run), *sections])
    return run / "report.html"


def _choices(run: Path) -> str:
    """Describe what `rcg train` chose, and why; empty for other runs."""
    plan = read_state(run / PLAN)
    encoder = plan.get("encoder")
    lines = [
        f"- {name}: {code_span(plan[name])}\n"
        for name in ("data", "images", "generator", "condition")
        if plan.get(name)
    ]
    if isinstance(encoder, dict):
        name = code_span(encoder.get("name") or encoder.get("kind"))
        labels = "it was trained with labels of other images" if encoder.get("saw_labels") else "it has seen no labels"
        lines.append(f"- encoder: {name}, since {encoder.get('reason')}; {labels}\n")
    seeds = plan.get("seeds")
    if isinstance(seeds, int) and seeds > 1:
        lines.append(f"- seeds: {seeds}, each with networks of its own; the images below are those of the first\n")
    return "".join(lines)


def _images(run: Path, parents: Sequence[Path]) -> str:
    """Copy the steps' images into the run's folder, and return the Markdown that shows them."""
    shown = []
    for name, caption in IMAGES.items():
        patterns = [f"*/{name}.png", *(SAMPLES if name == "samples" else ())]
        found = next((paths[-1] for pattern in patterns if (paths := list(files_of_steps(parents, pattern)))), None)
        target = run / f"{name}.png"
        if found is not None:
            with replacing(target) as draft:
                shutil.copyfile(found, draft)
        if target.is_file():
            shown.append(image(target, caption, run))
    return "\n".join(shown)


def _own_sections(run: Path, parents: Sequence[Path]) -> Iterator[Section]:
    """Yield the sections that steps have written themselves, and files section-NAME.md in the run's folder."""
    for path in sorted(run.glob("section-*.md")):
        yield Section(path.stem.removeprefix("section-").replace("_", " ").capitalize(), path.read_text(), run)
    for path in files_of_steps(parents, f"*/{SECTION}"):
        yield Section(path.parent.name.replace("_", " ").capitalize(), path.read_text(), path.parent)


def _verdicts(parents: Sequence[Path]) -> str:
    """Return the verdicts; those of several seeds have headings."""
    found = list(files_of_steps(parents, "*/verdict.md"))
    if len(found) < 2:
        return "".join(path.read_text() for path in found)
    return "\n".join(f"### {_title(path.parent)}\n\n{path.read_text()}" for path in found)


def _comparison(run: Path) -> str:
    """Return the table of a comparison, with what the rows of `rcg train --compare` are, and their samples."""
    path, grid = run / "results.md", run / "grid.png"
    if not path.is_file():
        return ""
    wishes = read_state(run / PLAN).get("wishes")
    planned = isinstance(wishes, dict) and wishes.get("compare")
    shown = image(grid, "Samples of each row.", run) if grid.is_file() else ""
    return "\n".join([path.read_text(), *([COMPARED] if planned else []), shown])


def _title(folder: Path) -> str:
    """Return the name of a step by its folder, with its seed where the run has several."""
    seed = re.fullmatch(r"seed(\d+)", folder.parent.name)
    return folder.name if seed is None else f"{folder.name}, seed {seed[1]}"


def _curves(run: Path, parents: Sequence[Path]) -> Iterator[str]:
    """Draw the curves of every training step into its folder; yield the Markdown that shows them."""
    for folder in dict.fromkeys(path.parent for path in files_of_steps(parents, "*/*tfevents*")):
        scalars = logged_scalars(folder)
        if scalars:
            with replacing(folder / CURVES) as draft:
                curves_image(scalars).save(draft, "PNG")
            yield image(folder / CURVES, f"Training of {_title(folder)}.", run)


def _steps(parents: Sequence[Path]) -> str:
    """Return a table of the finished steps: their time and their commands."""
    rows = []
    for path in files_of_steps(parents, ".*.json"):
        record = read_record(path)
        if record.get("seconds") is not None and "command" in record:
            command = code_span(shlex.join(["rcg", *map(str, record["command"])])).replace("|", "\\|")
            name = _title(path.with_name(path.stem[1:]))
            rows.append((path.stat().st_mtime, f"| {name} | {duration(record['seconds'])} | {command} |"))
    if not rows:
        return ""
    return "\n".join(["| step | time | command |", "|---|---|---|", *(row for _, row in sorted(rows))]) + "\n"


def _settings(parents: Sequence[Path]) -> Iterator[str]:
    for path in files_of_steps(parents, "*/config.yaml"):
        yield f"### {path.parent.name}\n\n{code(path.read_text(), 'yaml')}"

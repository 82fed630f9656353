"""The report of a run: what its steps have written, on one page. Nothing here imports torch."""

import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rcg_lightning.artifacts import read_state, replacing
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.curves import curves_image, logged_scalars
from rcg_lightning.evaluation.report_page import Section, code, code_span, image, write_report
from rcg_lightning.pipeline.records import read_record
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
    parents = step_parents(run)
    curves = list(_curves(run, parents))
    steps = _steps(parents)
    sections = [
        Section("Choices", _choices(run), run),
        Section("Verdict", _whole(parents, "verdict.md"), run),
        Section("Images", _images(run, parents), run),
        *(_own_sections(run, parents)),
        Section("Comparison", (run / "results.md").read_text() if (run / "results.md").is_file() else "", run),
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


def _whole(parents: Sequence[Path], name: str) -> str:
    return "\n".join(path.read_text() for path in files_of_steps(parents, f"*/{name}"))


def _curves(run: Path, parents: Sequence[Path]) -> Iterator[str]:
    """Draw the curves of every training step into its folder; yield the Markdown that shows them."""
    for folder in dict.fromkeys(path.parent for path in files_of_steps(parents, "*/*tfevents*")):
        scalars = logged_scalars(folder)
        if scalars:
            with replacing(folder / "curves.png") as draft:
                curves_image(scalars).save(draft, "PNG")
            yield image(folder / "curves.png", f"Training of {folder.name}.", run)


def _steps(parents: Sequence[Path]) -> str:
    """Return a table of the finished steps: their time and their commands."""
    rows = []
    for path in files_of_steps(parents, ".*.json"):
        record = read_record(path)
        if record.get("seconds") is not None and "command" in record:
            command = code_span(shlex.join(["rcg", *map(str, record["command"])])).replace("|", "\\|")
            rows.append((path.stat().st_mtime, f"| {path.stem[1:]} | {record['seconds'] / 60:.1f} | {command} |"))
    if not rows:
        return ""
    return "\n".join(["| step | minutes | command |", "|---|---|---|", *(row for _, row in sorted(rows))]) + "\n"


def _settings(parents: Sequence[Path]) -> Iterator[str]:
    for path in files_of_steps(parents, "*/config.yaml"):
        yield f"### {path.parent.name}\n\n{code(path.read_text(), 'yaml')}"

"""Parse a pipeline file: steps, each an `rcg` command with placeholders, and the table of their results.

Nothing here imports torch.
"""

import difflib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcg_lightning.config_files import read_config
from rcg_lightning.errors import UserError

PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OWN = {"seed", "run"}  # placeholders that name no step


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Attributes:
        name: of the step and of its folder.
        run: the command, with placeholders.
        shared: run once for all seeds.
        devices: number of processes; several run outside this process.
        launcher: words before the command, where a job launcher such as srun starts it.
        arguments: values of the pipeline's arguments, whose names are placeholders too.
        steps: of a training. It may be raised later: then training continues instead of beginning again.
        version: identity of what the result depends on outside of the command, such as the files of a data set.
    """

    name: str
    run: str
    shared: bool = False
    devices: int = 1
    launcher: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    version: str | None = None

    @property
    def upstream(self) -> list[str]:
        """Names of the steps whose folders this one reads."""
        others = _OWN | self.arguments.keys()
        return [name for name in dict.fromkeys(PLACEHOLDER.findall(self.run)) if name not in others]

    @property
    def text(self) -> str:
        """The command with the values of the arguments, as a shell would read them."""
        return PLACEHOLDER.sub(
            lambda found: shlex.quote(self.arguments[found[1]]) if found[1] in self.arguments else found[0], self.run
        )

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of the command with all placeholders filled in.

        A value is never split or read again, whatever characters it holds: words are split first, and an item of a
        list such as ``[{store},{clusters}]`` is quoted as YAML needs it.
        """
        given = {**values, **self.arguments}

        def fill(word: str) -> str:
            return PLACEHOLDER.sub(lambda found: str(given[found[1]]), word)

        def filled(word: str) -> str:
            before, bracket, items = word.partition("[")
            if not (
                bracket and items.endswith("]") and PLACEHOLDER.search(items) and re.fullmatch(r"(--.*=)?", before)
            ):
                return fill(word)
            return f"{before}[{','.join(_list_item(fill(item.strip())) for item in items[:-1].split(','))}]"

        return [filled(word) for word in shlex.split(self.run)]


def _list_item(text: str) -> str:
    return text if re.fullmatch(r"[\w./+-]+", text, re.ASCII) else json.dumps(text)


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file.

    Attributes:
        name: results go to ``<root>/<name>``.
        steps: by name, in an order in which every step comes after its upstreams.
        table: the command that compares the rows, without ``--rows`` and ``--out``; None for no table.
        rows: condition -> the step that makes its samples.
        arguments: the values of the file's arguments.
    """

    name: str
    steps: dict[str, Step]
    table: str | None
    rows: dict[str, str]
    arguments: Mapping[str, str] = field(default_factory=dict)


def read_pipeline(path: Path, commands: Collection[str], given: Mapping[str, str] | None = None) -> Pipeline:
    """Parse a pipeline file, or raise a UserError if it cannot run.

    Args:
        commands: names of the `rcg` commands that a step may run.
        given: values for some of the file's ``arguments``, whose names appear in braces in its commands.
    """
    content = read_config(path)
    _known_keys(path, content, {"steps"}, {"name", "table", "arguments"})
    arguments = _arguments(path, content, given or {})
    if not isinstance(content["steps"], Mapping) or not content["steps"]:
        raise UserError(f"{path}: steps should be names, each with a command to run")
    steps: dict[str, Step] = {}
    for name, entry in content["steps"].items():
        steps[name] = _read_step(path, name, entry, steps, commands, arguments)
    table = content.get("table") or {}
    _known_keys(f"{path}, table", table, {"run", "rows"} if table else set(), {"run", "rows"})
    rows = table.get("rows", {})
    _known_keys(f"{path}, rows of the table", rows, set(), rows.keys() if isinstance(rows, Mapping) else ())
    for step in rows.values():
        if step not in steps:
            raise UserError(f"{path}: the table reads {step}, which is not a step{_near(str(step), steps)}")
    _check_words(f"{path}, table: run", table.get("run", "compare"))
    return Pipeline(_name(path, content.get("name", path.stem)), steps, table.get("run"), dict(rows), arguments)


def _name(path: Path, name: Any) -> str:
    """Return a pipeline's name, which must be that of a folder."""
    if not (isinstance(name, str | int) and re.fullmatch(r"[\w][\w. +-]{,99}", str(name))):
        raise UserError(f"{path}: name should be that of a folder: letters, digits, _, -, + and dots, not {name!r}")
    return str(name)


def _check_words(where: str, value: Any) -> None:
    """Raise a UserError unless ``value`` is a command that can be split into words."""
    try:
        words = shlex.split(value) if isinstance(value, str) else []
    except ValueError as error:
        raise UserError(f"{where} cannot be split into words ({error}): {value}") from error
    if not words:
        raise UserError(f"{where} should be a command, such as fit --config digits/encoder, not {value!r}")


def _arguments(path: Path, content: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return the value of each argument of a pipeline file."""
    arguments = content.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{path}: arguments should be names with their values")
    for name in given:
        if name not in arguments:
            known = f": its arguments are {', '.join(arguments)}" if arguments else ": it takes none"
            raise UserError(f"{path} has no argument {name}{_near(name, arguments) or known}")
    values = {name: str(value) for name, value in {**arguments, **given}.items()}
    clash = sorted(values.keys() & ({*content["steps"]} | _OWN if isinstance(content["steps"], Mapping) else _OWN))
    if clash:
        raise UserError(f"{path}: argument {clash[0]} has the name of a step or of a built-in placeholder")
    return values


def _read_step(
    path: Path,
    name: str,
    entry: Any,
    before: Mapping[str, Step],
    commands: Collection[str],
    arguments: Mapping[str, str],
) -> Step:
    where = f"{path}, step {name}"
    word = isinstance(name, str) and re.fullmatch(r"\w{1,100}", name)
    if not word or name in _OWN | {"table"} or re.fullmatch(r"seed\d+", name):
        raise UserError(f"{where}: a step's name is one word, and not seed, seed0, run or table")
    _known_keys(where, entry, {"run"}, {"shared", "devices", "launcher", "steps", "version"})
    run, shared, devices = entry["run"], entry.get("shared", False), entry.get("devices", 1)
    launcher = entry.get("launcher", "")
    _check_words(f"{where}: run", run)
    if launcher != "":
        _check_words(f"{where}: launcher", launcher)
    if not (isinstance(shared, bool) and isinstance(devices, int) and devices > 0):
        raise UserError(f"{where}: shared is true or false, devices a number of at least 1")
    steps, version = entry.get("steps"), entry.get("version")
    fits = steps is None or (isinstance(steps, int) and not isinstance(steps, bool) and steps > 0)
    if not fits or (steps is not None and run.split()[0] != "fit"):
        raise UserError(f"{where}: steps is a number of at least 1, for a step that runs fit")
    command = run.split()[0]
    if command not in commands:
        raise UserError(f"{where}: a step cannot run {command}{_near(command, commands)}")
    launcher = Step(name, launcher, arguments=arguments).words({})
    identity = None if version is None else str(version)
    step = Step(name, run, shared, devices, tuple(launcher), arguments, steps, identity)
    for other in step.upstream:
        if other not in before:
            raise UserError(f"{where} reads {{{other}}}, which is not an earlier step{_near(other, before)}")
        if shared and not before[other].shared:
            raise UserError(f"{where} is shared by all seeds, so it can only read shared steps, which {other} is not")
    return step


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def _known_keys(where: object, entry: Any, required: Iterable[str], optional: Iterable[str]) -> None:
    required, known = set(required), sorted({*required, *optional})
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} should hold {', '.join(known)}")
    unknown = sorted(entry.keys() - set(known))
    if unknown:
        hint = _near(unknown[0], known) or f": keys are {', '.join(known)}"
        raise UserError(f"{where}: unknown key {unknown[0]}{hint}")
    missing = sorted(required - entry.keys())
    if missing:
        raise UserError(f"{where} lacks {missing[0]}: keys are {', '.join(known)}")

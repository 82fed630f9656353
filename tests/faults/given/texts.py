"""Configs and pipeline files: bombs of aliases, includes of themselves, tags and classes that run code, bad names."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..hostile import ESCAPED, MODULE, Given
from ..world import FIT, STEPS, World

FILE = "x.yaml"
TRAIN = f"fit --config digits/generator --config {{at}}/{FILE} {FIT} {STEPS} --trainer.default_root_dir {{out}}"
PIPELINE = f"pipeline {{at}}/{FILE} --root {{out}}"
CODE = "!!python/object/apply:os.system ['touch touched']"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BROKEN = {
    "laughs": LAUGHS,
    "Python tag": f"model: {CODE}\n",
    "Python name": f"model: !!python/name:{MODULE}.Evil\n",
    "alias in itself": "model: &a [*a]\n",
    "a list": "[1, 2]\n",
    "a number": "7\n",
    "text": "just text\n",
    "brackets": "model: " + "[" * 20000 + "\n",
    "not closed": "model: {a: [1\n",
    "tab": "model:\n\ta: 1\n",
    "null byte": "model: a\0b\n",
}
CONFIGS = {
    "includes itself": f"model: {FILE}\n",
    "unknown key": "modell: 3\n",
    "model of code": "model: {class_path: os.system, init_args: {command: touch touched}}\n",
    "model of a stranger": f"model: {{class_path: {MODULE}.Evil}}\n",
    "callback of a stranger": f"trainer: {{callbacks: [{{class_path: {MODULE}.Evil}}]}}\n",
    "callback of code": "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, touched]}}]}\n",
    "logger of a stranger": f"trainer: {{logger: {{class_path: {MODULE}.Evil}}}}\n",
    "data of a stranger": f"data: {{class_path: {MODULE}.Evil}}\n",
    "strategy of a stranger": f"trainer: {{strategy: {{class_path: {MODULE}.Evil}}}}\n",
    "optimizer of a stranger": f"model: {{init_args: {{optimizer: {{class_path: {MODULE}.Evil}}}}}}\n",
    "sampler of a stranger": f"model: {{init_args: {{sampler: {{class_path: {MODULE}.Evil}}}}}}\n",
    "steps of text": "trainer: {max_steps: many}\n",
    "steps a list": "trainer: {max_steps: [1]}\n",
    "learning rate NaN": "model: {init_args: {optimizer: {class_path: AdamW, init_args: {lr: .nan}}}}\n",
    "learning rate a date": "model: {init_args: {optimizer: {class_path: AdamW, init_args: {lr: 2024-01-01}}}}\n",
    "class path a number": "model: {class_path: 7}\n",
    "class path a list": "model: {class_path: [a]}\n",
    "arguments a list": "model: {class_path: DiffusionStage, init_args: [1]}\n",
    "trainer a list": "trainer: [1]\n",
    "data a number": "data: 7\n",
    "path of a password file": "model: /etc/passwd\n",
}
STEP = "steps: {one: {run: 'principal --data.source Digits --dim 2'}}\n"
PIPELINES = {
    "name leaves the folder": f"name: ../{ESCAPED}\n{STEP}",
    "name of an absolute path": f"name: /tmp/rcg-{ESCAPED}\n{STEP}",
    "name of two folders": f"name: {ESCAPED}/b\n{STEP}",
    "name empty": f"name: ''\n{STEP}",
    "name a dot": f"name: .\n{STEP}",
    "name two dots": f"name: ..\n{STEP}",
    "name a list": f"name: [a]\n{STEP}",
    "name a null byte": f'name: "a\\0b"\n{STEP}',
    "step leaves the folder": f"steps: {{../{ESCAPED}: {{run: 'principal --data.source Digits --dim 2'}}}}\n",
    "step of an absolute path": f"steps: {{/tmp/rcg-{ESCAPED}: {{run: 'principal --dim 2'}}}}\n",
    "step a number": "steps: {7: {run: 'principal --dim 2'}}\n",
    "step of another program": "steps: {one: {run: 'touch touched'}}\n",
    "step of a shell": "steps: {one: {run: 'principal; touch touched'}}\n",
    "step of a pipeline": f"steps: {{one: {{run: 'pipeline {FILE}'}}}}\n",
    "step reads itself": "steps: {one: {run: 'principal --data.source {one}'}}\n",
    "step reads nothing": "steps: {one: {run: 'principal --data.source {other}'}}\n",
    "quote not closed": 'steps: {one: {run: "principal --data.source \'Digits"}}\n',
    "no steps": "steps: {}\n",
    "steps a list": "steps: [1]\n",
    "run a list": "steps: {one: {run: [1]}}\n",
    "run empty": "steps: {one: {run: ''}}\n",
    "devices of text": "steps: {one: {run: 'principal --dim 2', devices: many}}\n",
    "devices 0": "steps: {one: {run: 'principal --dim 2', devices: 0}}\n",
    "launcher a number": "steps: {one: {run: 'principal --dim 2', launcher: 7}}\n",
    "table of another program": f"{STEP}table: {{run: 'touch touched', rows: {{a: one}}}}\n",
    "table reads nothing": f"{STEP}table: {{run: 'compare', rows: {{a: other}}}}\n",
    "table a list": f"{STEP}table: [1]\n",
    "table without rows": f"{STEP}table: {{run: 'compare'}}\n",
    "arguments a list": f"{STEP}arguments: [1]\n",
    "argument of a step's name": f"{STEP}arguments: {{one: 1}}\n",
    "unknown key": f"{STEP}stepps: 1\n",
}


def inputs() -> Iterator[Given]:
    for name, content in (BROKEN | CONFIGS).items():
        mentions = (FILE, "model", "data", "trainer", "logger", "optimizer", "sampler", "callbacks", "lr")
        yield Given("config", name, _write(content), TRAIN, mentions)
    yield Given("config", "empty", _write(""), TRAIN, (FILE,), (0,))
    yield Given("config", "not text", _write(b"\xff\xfe\x00\x01"), TRAIN, (FILE,))
    for name, content in (BROKEN | PIPELINES).items():
        yield Given("pipeline", name, _write(content), PIPELINE, (FILE, "step one", ESCAPED))
    yield Given("pipeline", "not text", _write(b"\xff\xfe\x00\x01"), PIPELINE, (FILE,))
    for name, make in {"missing": _nothing, "a folder": lambda world, at: (at / FILE).mkdir()}.items():
        yield Given("config", name, make, TRAIN, (FILE,))
        yield Given("pipeline", name, make, PIPELINE, (FILE,))


def _nothing(world: World, at: Path) -> None:
    pass


def _write(content: str | bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: (at / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())

"""The order of the layers: who may import whom. Read from the source, nothing is run."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "rcg_lightning"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = {
    "arguments": 0,
    "errors": 0,
    "interruption": 0,
    "limits": 0,
    "array_files": 0,
    "artifacts": 0,
    "integrity": 0,
    "random_state": 0,
    "run_folder": 0,
    "overall_progress": 0,
    "config": 0,
    "config_files": 0,
    "types": 0,
    "core": 0,
    "networks": 1,
    "pretrained": 1,
    "data": 2,
    "stages": 3,
    "conditions": 4,
    "metrics": 4,
    "evaluation": 4,
    "callbacks": 4,
    "trainer": 4,
    "class_modules": 4,
    "sampling": 5,
    "official": 5,
    "pipeline": 5,
    "planning": 5,
    "bench": 5,
    "gpu_check": 5,
    "verification": 5,
    "cli": 6,
    "__main__": 6,
}
PACKAGE = "rcg_lightning"


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join((PACKAGE, *parts)).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def layer(module: str) -> int:
    """The layer of a module's dotted name; the package itself holds the version only and is under everything."""
    parts = module.split(".")
    return -1 if len(parts) == 1 else LAYERS[parts[1]]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names of the modules that a file imports, foreign ones too; only at its top unless ``everywhere``."""
    tree = tree_of(path)
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else top_level(tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in MODULES} or {node.module or ""}
    return found


def top_level(body):
    """Statements that run on import, those of blocks included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from top_level(getattr(node, part, []))


def ours(path: Path, everywhere: bool = True) -> set[str]:
    return {name for name in imports(path, everywhere) if name.split(".")[0] == PACKAGE}


def test_there_is_something_to_read():
    assert len(FILES) > 50
    assert {layer(name) for name in MODULES} == {-1, 0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    here = layer(name_of(path))
    above = {name for name in ours(path) if layer(name) > here}
    assert not above, f"{name_of(path)} is in layer {here} and imports {sorted(above)}"


def test_what_is_pretrained_knows_no_stage_and_no_data():
    for path in (SOURCE / "pretrained").glob("*.py"):
        wrong = {name for name in ours(path) if name.split(".")[1:2] in (["stages"], ["data"])}
        assert not wrong, f"{path.name} imports {sorted(wrong)}"


def test_no_circles():
    graph = {name: ours(path, everywhere=False) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_core_is_tensors_only():
    """No parameters, no Lightning, no other layer but its own."""
    for path in (SOURCE / "core").glob("*.py"):
        names = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
        assert not names & {"Parameter", "Module", "Linear", "LightningModule"}, path.name
        foreign = {name.split(".")[0] for name in imports(path)}
        assert not foreign & {"lightning", "torchvision", "timm", "torchmetrics"}, path.name


def test_files_are_small_and_have_names():
    long = {path.name: count for path in FILES if (count := len(path.read_text().splitlines())) > 500}
    assert not long
    vague = {"utils", "util", "misc", "helpers", "helper", "common", "wrapper", "manager"}
    assert not [path for path in FILES if vague & set(path.relative_to(SOURCE).with_suffix("").parts)]


def calls(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_and_no_device_is_typed(path):
    for name, call in calls(tree_of(path)):
        where = f"{path.name}:{call.lineno}"
        assert name != "cuda", f"{where}: .cuda() decides on a device"
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "weights_only" in given:
            chosen = given["weights_only"]
            assert isinstance(chosen, ast.Constant), where
            assert chosen.value is True, f"{where}: weights_only=False would run what a file says"
        function = call.func
        owner = (
            function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        )
        if name == "load" and owner == "torch":
            assert "weights_only" in given, f"{where}: torch.load without weights_only=True"
        if name == "load" and owner in {"np", "numpy"}:
            allowed = given.get("allow_pickle")
            assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), where
    assert not imports(path) & {"dill", "cloudpickle", "joblib", "marshal", "shelve"}
    if "pickle" in imports(path):  # for the names of its errors, nothing else
        used = {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
        }
        assert used <= {"UnpicklingError"}, f"{path.name} uses pickle.{sorted(used)}"

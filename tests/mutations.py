"""Change one operator of the source at a time and count how many changes the nearest tests catch.

    python -m tests.mutations --count 100 --seed 0

The nearest tests of a file are the one with its name, else those of its folder that import it. Processes fork from one
that has imported torch; each mutant lies in a copy of the source. Uncaught mutants are printed as they are found; some
change nothing that can be observed.
"""

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
FOLDERS = ("core", "stages", "data", "evaluation", "metrics", "conditions", "sampling")
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def operators(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Return (node, field) of every operator that can be swapped, without those of annotations."""
    hints = {id(inner) for node in ast.walk(tree) for hint in _annotations(node) for inner in ast.walk(hint)}
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            found.append((node, "op"))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((node, "ops"))
    return found


def _annotations(node: ast.AST) -> list[ast.AST]:
    hints = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [hint for hint in hints if isinstance(hint, ast.AST)]


def mutated(text: str, number: int) -> tuple[str, str]:
    """Return the source with its operator ``number`` swapped, and a description: line and both forms."""
    tree = ast.parse(text)
    node, field = operators(tree)[number]
    before = ast.unparse(node)
    if field == "ops":
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[attr-defined]
    else:
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    return ast.unparse(tree), f"line {node.lineno}: {before[:70]}  ->  {ast.unparse(node)[:70]}"  # type: ignore[attr-defined]


def nearest_tests(path: Path) -> list[str]:
    """Return up to three test files of a source file: by its name, else those next to it that import it."""
    parts = path.relative_to(SOURCE / "rcg_lightning").with_suffix("").parts
    folder = ROOT / "tests" / Path(*parts[:-1])
    named = [folder / f"test_{parts[-1]}.py"]
    module = ".".join(("rcg_lightning", *parts))
    importing = [file for file in sorted(folder.glob("test_*.py")) if module in file.read_text()]
    importing.sort(key=lambda file: file.stat().st_size)
    return [str(file) for file in dict.fromkeys([*filter(Path.is_file, named), *importing])][:3]


def is_caught(path: Path, text: str, tests: list[str], limit: int) -> bool:
    """Whether the tests fail, or run longer than ``limit`` seconds, with ``text`` as the content of ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
        os.symlink(ROOT / "configs", Path(folder) / "rcg_lightning" / "configs")
        (Path(folder) / path.relative_to(SOURCE)).write_text(text)
        child = os.fork()
        if child == 0:
            _run(folder, tests)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status != 0
            time.sleep(0.1)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True


def _run(source: str, tests: list[str]) -> None:
    """Run pytest on another source; never returns."""
    os.setpgid(0, 0)
    import pytest

    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = source
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    code = 1
    with contextlib.suppress(BaseException):
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not distributed", *tests]))
    os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=120, help="seconds for the tests of one mutant")
    args = parser.parse_args()
    import lightning.pytorch  # noqa: F401
    import torchmetrics  # noqa: F401
    import torchvision  # noqa: F401

    folders = [SOURCE / "rcg_lightning" / name for name in FOLDERS]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py")) if nearest_tests(path)]
    every = [(path, n) for path in files for n in range(len(operators(ast.parse(path.read_text()))))]
    chosen = random.Random(args.seed).sample(every, min(args.count, len(every)))
    caught = 0
    for number, (path, operator) in enumerate(chosen, 1):
        text, change = mutated(path.read_text(), operator)
        if is_caught(path, text, nearest_tests(path), args.limit):
            caught += 1
        else:
            print(f"missed: {path.relative_to(SOURCE)}, {change}", flush=True)
        if number % 10 == 0:
            print(f"{caught} of {number} caught", flush=True)
    print(f"{caught} of {len(chosen)} changes caught, {len(every)} possible ones")


if __name__ == "__main__":
    main()

"""The size of the house. Numbers only ever go down; what they are to become stands beside them."""

import ast
import subprocess
import zlib
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_LINES = 18_463  # to become 14,000
LONGEST_FILE = 400
SHARED_NAMES = 20  # public names that two modules have; most are what both worlds call alike
MOST_PACKAGES = 66  # that `make setup` installs
MOST_BYTES = 5_000_000  # that a clone of one commit transfers, less the weights


def test_the_package_stays_small() -> None:
    sources = ("lumos", "benchmarks", "examples", "recipes", "research", "tests")
    lines = {path: len(path.read_text().splitlines()) for part in sources for path in (ROOT / part).rglob("*.py")}
    assert sum(count for path, count in lines.items() if ROOT / "lumos" in path.parents) <= PACKAGE_LINES
    assert {str(path): count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_few_packages_are_needed() -> None:
    assert (ROOT / "constraints.txt").read_text().count("==") <= MOST_PACKAGES


def test_no_name_stands_for_two_things() -> None:
    where: dict[str, set[Path]] = defaultdict(set)
    for path in (ROOT / "lumos").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            for name in [*names, *(target.id for target in targets if isinstance(target, ast.Name))]:
                where[name].add(path)
    shared = {name for name, paths in where.items() if len(paths) > 1 and not name.startswith("_")}
    assert len(shared) <= SHARED_NAMES, sorted(shared)
    assert not shared & {"Batch", "Plan", "Clip", "Guard", "fingerprint", "estimate", "engine"}


def test_a_clone_without_the_weights_is_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and "pretrained" not in name]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files if file.is_file()) <= MOST_BYTES


def is_module(package: str, name: str) -> bool:
    return (ROOT / package.replace(".", "/") / f"{name}.py").exists()


def test_what_scripts_take_from_the_package_is_there() -> None:
    """Benchmarks and research are not run here, nor their types checked."""
    missing = []
    for folder in ("benchmarks", "examples", "research"):
        for path in (ROOT / folder).rglob("*.py"):
            taken = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            for node in (node for node in taken if node.module and node.module.split(".")[0] == "lumos"):
                module, names = import_module(node.module), [each.name for each in node.names]
                missing += [
                    f"{path.name}: {name}" for name in names if not (hasattr(module, name) or is_module(node.module, name))
                ]
    assert missing == []

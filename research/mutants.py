"""Mutation testing: small faults are put into the package one at a time, and the tests that run the line are run.

    python -m research.mutants model data/loader --sample 80 --seed 1

First the tests run once on a copy of the tree, to learn which of the lines each runs. A survivor's line is not held by any test.
Tests that take far too long count as having noticed it, and are named, as a busy machine slows them, too.
"""

import argparse
import ast
import bisect
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("sequence", "model", "diffusion", "tokenizer", "training", "data", "serving")
NOT_RUN = ("tests/gpu", "tests/research", "tests/serving/test_browser.py", "tests/test_budgets.py")
MOST_SECONDS = 60.0  # of tests per mutant, by what they take without it: quick ones first
PAIRS: list[tuple[type, type]] = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn)]
PAIRS += [(ast.Is, ast.IsNot), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or)]
FLIPPED: dict[type, Any] = {old: new for pair in PAIRS for old, new in (pair, pair[::-1])}
FLIPPED |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult}
# what Python runs first in every process
STARTED = """import os
if "SEEN" in os.environ:
    from research.mutants import ROOT, Path, Seen
    Seen(ROOT, Path(os.environ["SEEN"]))
"""
# Arguments that are for people, check what we ourselves hold, or act on a card only, where tests/gpu hold them.
UNSEEN = {"description", "indent", "zip strict", "warnings.catch_warnings action"}
UNSEEN |= {"device", "non_blocking", "torch.compile dynamic"}
SETUP = -1  # in place of a test's number: what a fixture runs counts for all tests of its file, as it may be made once for all
FORK = multiprocessing.get_context("fork")
Tests = dict[str, list[tuple[float, str]]]  # place, as a mutant's -> (seconds, name) of the tests that come by it


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one file."""

    file: str  # from the root of the tree
    line: int
    start: int  # of what is replaced, in the file's text
    end: int
    new: str
    places: tuple[str, ...]  # where its tests come by, the nearest first: "file:line", "file:function", "=name", "file"


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a module's source."""
    starts = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]

    def visit(node: ast.AST, around: tuple[str, ...]) -> Iterator[Mutant]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            around = (f"{file}:{node.name}", file)
        elif isinstance(node, ast.ClassDef):
            around = (f"={node.name}", file)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and around[0].startswith(("=", file)) and ":" not in around[0]:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target  # a constant or a field: where it is named
            around = (f"={ast.unparse(target)}", *around)
        for new in changes(node):
            assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno and node.end_col_offset is not None
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            yield Mutant(file, node.lineno, start, end, new, (f"{file}:{node.lineno}", *around))
        for child in parts(node):
            yield from visit(child, around)

    yield from visit(ast.parse(text), (file,))


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """What is inside a node and may be changed: no annotations, decorators, messages, assertions or default texts."""
    is_type = isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Annotated", "Literal")
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom) or is_number(node) or is_type:
        return
    for name, value in ast.iter_fields(node):
        if name == "keywords" and isinstance(node, ast.Call):
            yield from noticed(node)
        elif name not in ("annotation", "returns", "decorator_list", "bases"):
            yield from (child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST))


def noticed(call: ast.Call) -> list[ast.keyword]:
    """The keyword arguments of a call that a test can notice."""
    return [each for each in call.keywords if not {each.arg, f"{ast.unparse(call.func)} {each.arg}"} & UNSEEN]


def is_number(node: ast.AST) -> bool:
    """A number that is written as several: 3 * 2**29."""
    inside = ast.BinOp | ast.UnaryOp | ast.Constant | ast.operator | ast.unaryop
    return isinstance(node, ast.BinOp) and all(isinstance(each, inside) for each in ast.walk(node))


def changes(node: ast.AST) -> Iterator[str]:
    """Sources that a node is replaced by, each a mutant."""
    match node:
        case ast.BinOp() if is_number(node):
            yield f"(2 * {ast.unparse(node)})"
        case ast.Compare(ops=[op]):
            yield ast.unparse(ast.Compare(node.left, [FLIPPED[type(op)]()], node.comparators))
        case ast.BinOp(op=op) if type(op) in FLIPPED:
            yield f"({ast.unparse(ast.BinOp(node.left, FLIPPED[type(op)](), node.right))})"
        case ast.BoolOp(op=op):
            yield f"({ast.unparse(ast.BoolOp(FLIPPED[type(op)](), node.values))})"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool() as value):
            yield repr(not value)
        case ast.Constant(value=int() as value):
            yield from (str(value + 1), f"({value - 1})")
        case ast.Constant(value=float() as value):
            yield repr(value * 2 or 1.0)
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Call() | ast.Await()):
            yield "pass"
        case ast.Call(keywords=[_, *_]):
            for keyword in noticed(node):
                if keyword.arg:
                    yield ast.unparse(ast.Call(node.func, node.args, [other for other in node.keywords if other is not keyword]))


class Seen:
    """Which places of the package each test comes by. A pytest plugin; processes that tests start have one, too (STARTED)."""

    def __init__(self, tree: Path, out: Path) -> None:
        self.root, self.inside, self.tests = f"{tree}/", f"{tree}/lumos/", dict[int, tuple[float, str]]()
        self.left, self.mine, self.number = dict[Any, set[int]](), 0, 0
        self.file = os.open(out, os.O_CREAT | os.O_RDWR | os.O_APPEND)  # at once, as what tests start may be killed
        now = os.open(out.with_suffix(".now"), os.O_CREAT | os.O_RDWR)
        os.truncate(now, 8)
        self.now = memoryview(mmap(now, 8)).cast("q")  # number of the test that runs, or SETUP, in all processes
        threading.settrace(self.enter)
        sys.settrace(self.enter)

    def write(self, *places: str) -> None:
        os.write(self.file, "".join(f"{self.now[0]} {place}\n" for place in places).encode())

    def lines_left(self, code: Any) -> set[int]:
        """Lines of a function that this test has not seen."""
        if self.mine != self.now[0]:
            self.left, self.mine = {}, self.now[0]
        if code not in self.left:
            self.left[code] = {line for _, _, line in code.co_lines() if line}
            file = code.co_filename.removeprefix(self.root)
            self.write(file, f"{file}:{code.co_name}", *(f"={name}" for name in code.co_names))
        return self.left[code]

    def enter(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.inside):
            return None
        frame.f_trace_lines = bool(self.lines_left(frame.f_code))
        return self.step

    def step(self, frame: Any, event: str, _: Any) -> Any:
        left = self.lines_left(frame.f_code)
        if frame.f_lineno in left:
            left.remove(frame.f_lineno)
            self.write(f"{frame.f_code.co_filename.removeprefix(self.root)}:{frame.f_lineno}")
        frame.f_trace_lines = bool(left)
        return self.step

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.begin, self.passed = time.monotonic(), True
        self.number += 1
        self.now[0] = SETUP

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed &= not report.failed
        self.now[0] = self.number

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        if self.passed:
            self.tests[self.number] = (time.monotonic() - self.begin, nodeid)


def run_pytest(tree: Path, words: list[str], out: Path | None = None) -> int:
    """Run tests of a copy, in a process of its own; `out`: where to write what each of them comes by."""
    os.chdir(tree)
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    import pytest

    plugins = []
    if out:
        os.environ["SEEN"] = str(out)
        plugins = [Seen(tree, out)]
    status = int(
        pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not gpu", *words, *([] if out else ["-x"])], plugins=plugins)
    )
    if out:
        out.with_suffix(".json").write_text(json.dumps(plugins[0].tests))
    return status


def in_child(limit: float, target: Any, *arguments: Any) -> int | None:
    """The exit status of a function in a forked process and session of its own; None where it takes more than `limit` seconds."""

    def run() -> None:
        os.setsid()
        sys.exit(target(*arguments))

    child = FORK.Process(target=run)
    child.start()
    child.join(limit)
    status = child.exitcode
    with suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)  # also what the tests have started
    child.join()
    return status


def tests_of_places(parts: Sequence[str], place: Path, processes: int) -> Tests:
    """Run all tests of some parts once: the tests that come by each place, the quickest first."""
    packages = [part.partition("/")[0] for part in parts]
    names = re.compile(rf"\blumos\.({'|'.join(packages)})\b")
    files = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    chosen = [file for file, path in files.items() if path.parent.name in packages or names.search(path.read_text())]
    outs = {file: place / f"{number}.seen" for number, file in enumerate(chosen) if not file.startswith(NOT_RUN)}
    tree = place / "all"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"))
    (tree / "sitecustomize.py").write_text(STARTED)
    tests: dict[str, set[tuple[float, str]]] = defaultdict(set)
    with ProcessPoolExecutor(processes, FORK) as pool:
        wait([pool.submit(in_child, 600, run_pytest, tree, [file], out) for file, out in outs.items()])
    for file, out in outs.items():
        if not out.with_suffix(".json").exists():
            print(f"the tests in {file} did not end; they are left out", flush=True)
            continue
        passed = json.loads(out.with_suffix(".json").read_text())
        for number, _, seen in (line.partition(" ") for line in out.read_text().splitlines()):
            if number in passed:
                tests[seen].add(tuple(passed[number]))
            elif number == str(SETUP):
                tests[seen].update(map(tuple, passed.values()))
        for name in set(re.findall(r"\b[A-Z]\w+\b", files[file].read_text())):  # of a constant or a class
            tests[f"={name}"] |= set(map(tuple, passed.values()))
    return {place: sorted(found) for place, found in tests.items()}


def tests_for(mutant: Mutant, all_tests: Tests) -> list[tuple[float, str]]:
    """Tests that come by the place nearest to a mutant that any test comes by, or by any of its names; the quickest first."""
    named = {test for place in mutant.places if place.startswith("=") for test in all_tests.get(place, ())}
    tests = sorted(named) or next((all_tests[place] for place in mutant.places if place in all_tests), [])
    return tests[: max(1, bisect.bisect(list(itertools.accumulate(seconds for seconds, _ in tests)), MOST_SECONDS))]


def outcome(mutant: Mutant, tests: list[tuple[float, str]], place: Path) -> str:
    """Run tests on a copy of the tree with the mutant in it."""
    if not tests:
        return "survived"
    tree = place / str(os.getpid())
    if not tree.exists():
        shutil.copytree(place / "all", tree)
    file = tree / mutant.file
    whole = file.read_text()

    def put(text: str) -> None:
        file.write_text(text)
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)  # it tells texts apart by size and second alone

    put(whole[: mutant.start] + mutant.new + whole[mutant.end :])
    status = in_child(20 + 4 * sum(seconds for seconds, _ in tests), run_pytest, tree, [name for _, name in tests])
    put(whole)
    return {0: "survived", None: "too slow"}.get(status, "killed")  # a mutant may be an endless loop, or the machine busy


def sample_mutants(part: str, count: int, seed: int) -> list[Mutant]:
    """A seeded sample of the mutants of a package of lumos (`model`) or of one module of it (`model/rope`)."""
    folder = ROOT / "lumos" / part
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    found = [mutant for path in paths for mutant in mutants_of(str(path.relative_to(ROOT)), path.read_text())]
    return random.Random(f"{seed} {part}").sample(found, min(count, len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PACKAGES, help="packages or modules of lumos (default: seven packages)")
    parser.add_argument("--sample", type=int, default=30, help="mutants of each (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import torch  # noqa: F401  # once, for all forks

    with tempfile.TemporaryDirectory() as name:
        place, killed = Path(name), dict.fromkeys(args.parts, 0)
        tests = tests_of_places(args.parts, place, args.processes)
        samples = {part: sample_mutants(part, args.sample, args.seed) for part in args.parts}
        with ProcessPoolExecutor(args.processes, FORK) as pool:
            run, drawn = pool.submit, [(part, mutant) for part, sample in samples.items() for mutant in sample]
            jobs = {run(outcome, mutant, tests_for(mutant, tests), place): (part, mutant) for part, mutant in drawn}
            for job in as_completed(jobs):
                part, mutant = jobs[job]
                killed[part] += job.result() != "survived"
                if job.result() != "killed":
                    old = (ROOT / mutant.file).read_text()[mutant.start : mutant.end]
                    shown = [f"{' '.join(text.split()):.90}" for text in (old, mutant.new)]
                    print(f"{job.result()} {mutant.file}:{mutant.line}: {' -> '.join(shown)}", flush=True)
    for part, sample in samples.items():
        print(f"{part}: {killed[part]} of {len(sample)} killed ({killed[part] / len(sample):.0%})")


if __name__ == "__main__":
    main()

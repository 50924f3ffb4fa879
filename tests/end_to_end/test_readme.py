"""README's commands, in the order in which they stand: nothing that one needs comes later or from elsewhere.

Here they run in this process with random weights and as little work as can be. `python -m tests.end_to_end.test_readme` pastes
them as they are, behind `make setup`, into a clean clone.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from lumos import presets
from lumos.cli.main import main
from lumos.evaluation.prompts import one_object
from lumos.generate import Generator
from tests.training.toys import use_few_captions

ROOT = Path(__file__).parents[2]
LITTLE = {
    "generate": "--steps 1 --guidance 1",
    "prepare": "--device cpu --fps 12",  # the weights in the package have 12, the random ones 8
    "train": "--set max_steps=1 --set videos=2 --set images=2 --set worlds.workers=0 --set worlds.chunk=2",
    "evaluate": "--set steps=1 --workers 0",
}


def commands() -> list[str]:
    """Every line of README's blocks that a shell runs, without its comment, from "Generate" on."""
    text = (ROOT / "README.md").read_text("utf-8").partition("## Generate")[2]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r" +#.*", "", line) for kind, block in blocks if not kind for line in block.splitlines() if line.strip()]


def test_every_command_works_after_those_before_it(
    random_model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("box", "shapes-128"):
        preset = replace(presets.MODELS[name], model=replace(random_model.config.model, vocabulary=0))
        monkeypatch.setitem(presets.MODELS, name, preset)
    use_few_captions(monkeypatch)
    monkeypatch.setattr("lumos.evaluation.shapes.one_object", lambda count: one_object(2))
    found = commands()
    assert len(found) > 10
    for line in found:
        program, *words = shlex.split(line)
        if program == "lumos":
            assert main([*words, *LITTLE[words[0]].split()]) == 0, line
        else:
            subprocess.run(["bash", "-c", line], check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as clone:
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        for line in ["make setup", *commands()]:
            print(f"$ {line}", flush=True)
            path = f"{clone}/.venv/bin:{os.environ['PATH']}"
            if subprocess.run(["bash", "-c", line], cwd=clone, env={**os.environ, "PATH": path}).returncode:
                sys.exit(f"failed: {line}")

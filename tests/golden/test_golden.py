"""lumos gives the numbers recorded from the released code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_check", HERE / "check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.build(json.loads((HERE / "lumos_small.json").read_text()))
    module.build = lambda info: model  # formula weights take seconds: make them once
    return module


def lumos_small() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(HERE / "lumos_small.safetensors"), json.loads((HERE / "lumos_small.json").read_text())


def test_equals_the_released_code(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check_lumos(*lumos_small()) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("ok  ") == 16


@pytest.mark.parametrize("key", ["visual_logits", "position_h", "t2v_call05_logits"])
def test_a_changed_number_is_noticed(key: str, check: ModuleType) -> None:
    golden, info = lumos_small()
    golden[key].view(-1)[5] += 1
    assert check.check_lumos(golden, info) == 1


def test_usage() -> None:
    result = subprocess.run([sys.executable, HERE / "check.py", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2 and "usage" in result.stderr

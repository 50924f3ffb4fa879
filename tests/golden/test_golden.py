"""lumos gives the numbers recorded from the released code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def check(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    module = load_script(HERE / "check.py")
    model = module.build(json.loads((HERE / "lumos_small.json").read_text()))
    module.build = lambda info: model  # formula weights take seconds: make them once
    tokenizer = module.build_cosmos(cosmos()[1])
    module.build_cosmos = lambda info: tokenizer
    return module


def lumos_small() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(HERE / "lumos_small.safetensors"), json.loads((HERE / "lumos_small.json").read_text())


def cosmos() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(HERE / "cosmos_dv4x8x8.safetensors"), json.loads((HERE / "cosmos_dv4x8x8.json").read_text())


def test_equals_the_released_code(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check_lumos(*lumos_small()) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("ok  ") == 16


@pytest.mark.parametrize("key", ["visual_logits", "position_h", "t2v_call05_logits"])
def test_a_changed_number_is_noticed(key: str, check: ModuleType) -> None:
    golden, info = lumos_small()
    golden[key].view(-1)[5] += 1
    assert check.check_lumos(golden, info) == 1


def test_the_tokenizer_equals_the_released_code(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check_cosmos(*cosmos()) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("ok  ") == 8


@pytest.mark.parametrize("key, comparisons", [("indices", 2), ("decoded", 2)])
def test_a_changed_number_of_the_tokenizer_is_noticed(key: str, comparisons: int, check: ModuleType) -> None:
    golden, info = cosmos()
    golden[key].view(-1)[5] += 1
    assert check.check_cosmos(golden, info) == comparisons


def test_a_recording_of_another_network_is_refused(load_script: Callable[[Path], ModuleType]) -> None:
    golden, info = cosmos()
    info["config"]["patch_size"] = 2
    with pytest.raises(ValueError, match="patch_size must be 4"):
        load_script(HERE / "check.py").check_cosmos(golden, info)


def test_usage() -> None:
    result = subprocess.run([sys.executable, HERE / "check.py", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2 and "usage" in result.stderr

"""lumos gives the numbers recorded from the released code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.golden import check
from tests.golden.check import build_cosmos

HERE = Path(__file__).parent
FILES = {"lumos": HERE / "lumos_small", "cosmos": HERE / "cosmos_dv4x8x8"}


def recorded(network: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(FILES[network].with_suffix(".safetensors")), json.loads(FILES[network].with_suffix(".json").read_text())


@pytest.fixture(scope="module", autouse=True)
def built() -> Iterator[None]:
    """Formula weights take seconds: once."""
    model, tokenizer = check.build(recorded("lumos")[1]), build_cosmos(recorded("cosmos")[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "build", lambda info: model)
        patch.setattr(check, "build_cosmos", lambda info: tokenizer)
        yield


@pytest.mark.parametrize(("network", "comparisons"), [("lumos", 16), ("cosmos", 8)])
def test_equals_the_released_code(network: str, comparisons: int, capsys: pytest.CaptureFixture[str]) -> None:
    failed = check.CHECKS[network](*recorded(network))
    out = capsys.readouterr().out
    assert failed == 0 and out.count("ok  ") == comparisons, out


@pytest.mark.parametrize(
    ("network", "keys", "comparisons"),
    [("lumos", ["visual_logits", "position_h", "t2v_call05_logits"], 3), ("cosmos", ["indices", "decoded"], 4)],
)
def test_every_changed_number_is_noticed(network: str, keys: list[str], comparisons: int) -> None:
    golden, info = recorded(network)
    for key in keys:
        golden[key].view(-1)[5] += 1
    assert check.CHECKS[network](golden, info) == comparisons


def test_a_recording_of_another_network_is_refused() -> None:
    _, info = recorded("cosmos")
    info["config"]["patch_size"] = 2
    with pytest.raises(ValueError, match="patch_size must be 4"):
        build_cosmos(info)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["nothing"]) == 2 and "usage" in capsys.readouterr().err

"""Settings read from JSON: what fits is taken as it is, everything else is one line that names the field."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos.config import LARGEST_NUMBER, Range, read_config, read_json
from lumos.diffusion.sampler import SamplerConfig
from lumos.sequence.token_file import About


@dataclasses.dataclass(frozen=True)
class Inner:
    levels: tuple[int, ...]
    pair: tuple[int, str]
    maybe: float | None


@dataclasses.dataclass(frozen=True)
class Outer:
    width: Annotated[int, Range(-1000, 1000)]
    rate: float
    name: str
    on: bool
    norm: Literal["layer", "rms"]
    inner: Inner
    other: Inner | None = None
    later: int = dataclasses.field(default=0, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}; use {self.width + 1}")


INNER = Inner((8, 5), (1, "a"), None)
OUTER = Outer(4, 0.5, "x", True, "rms", INNER, Inner((), (2, "b"), 1.5))


def as_json(config: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


NUMBERS, FLOATS = st.integers(-LARGEST_NUMBER, LARGEST_NUMBER), st.floats(-LARGEST_NUMBER, LARGEST_NUMBER)
INNERS = st.builds(Inner, st.lists(NUMBERS).map(tuple), st.tuples(NUMBERS, st.text()), st.none() | FLOATS)
EVEN, NORMS = st.integers(-500, 500).map(lambda n: 2 * n), st.sampled_from(["layer", "rms"])


@given(st.builds(Outer, EVEN, FLOATS | st.integers(-9, 9), st.text(), st.booleans(), NORMS, INNERS, st.none() | INNERS))
def test_a_config_survives_json(config: Outer) -> None:
    found = read_config(Outer, as_json(config), "here")
    assert found == config and type(found.rate) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 1.5}, ["width", "int", "1.5"]),
        ({"width": True}, ["width", "int", "True"]),
        ({"width": 3}, ["width must be even", "got 3", "use 4"]),
        ({"rate": "fast"}, ["rate", "float", "'fast'"]),
        ({"rate": True}, ["rate", "float", "True"]),
        ({"name": None}, ["name", "str", "None"]),
        ({"on": 1}, ["on", "bool", "1"]),
        ({"norm": "batch"}, ["norm", "layer, rms", "'batch'"]),
        ({"inner": 5}, ["inner", "Inner", "5"]),
        ({"inner": {"levels": [1, "2"], "pair": [1, "a"], "maybe": None}}, ["inner: levels[1]", "int", "'2'"]),
        ({"inner": {"levels": 1, "pair": [1, "a"], "maybe": None}}, ["levels", "list"]),
        ({"inner": {"levels": [], "pair": [1], "maybe": None}}, ["pair", "2 items", "got 1"]),
        ({"inner": {"levels": [], "pair": [1, "a"]}}, ["inner", "lacks", "'maybe'"]),
        ({"width": 1002}, ["width must be -1000 to 1000", "got 1002"]),
        ({"width": -(10**400)}, ["width must be -1000 to 1000"]),
        ({"rate": float("nan")}, ["rate must be", "got nan"]),
        ({"rate": float("inf")}, ["rate must be", "got inf"]),
        ({"rate": 10**400}, ["rate must be"]),
        ({"name": ["x"] * 100_000}, ["name must be of type str"]),
        ({"inner": {"levels": [1] * 100_000, "pair": [1, "a"], "maybe": None}}, ["levels must be a list of at most"]),
        ({"surprise": 1}, ["unknown field 'surprise'", "width"]),
    ],
)
def test_a_wrong_config_value_is_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^a/config\.json") as caught:
        read_config(Outer, as_json(OUTER) | change, "a/config.json")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_only_fields_of_later_versions_may_be_missing() -> None:
    values = {name: value for name, value in as_json(OUTER).items() if name != "later"}
    assert read_config(Outer, values, "here") == OUTER
    with pytest.raises(ValueError, match="lacks the field 'other'"):
        read_config(Outer, {name: value for name, value in values.items() if name != "other"}, "here")


def test_files_of_the_first_version_are_read() -> None:
    sampler = {"steps": 8, "guidance": 3.0, "temperature": 1.0, "noise": 1.0, "history": 0.7, "sampler": "paper"}
    assert read_config(SamplerConfig, sampler, "here") == SamplerConfig(8)
    about = {"prompts": ["a fox"], "seeds": [1], "fps": 8, "given": 0, "tokenizer": "x"}
    assert read_config(About, about, "here") == About(("a fox",), (1,), 8, 0, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b'{"a": [{"b": 1, "b": 1}]}', "a name must stand once in an object, got 'b' 2 times"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "run git lfs pull"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"a\.json .*{words}"):
        read_json(path)
    with pytest.raises(FileNotFoundError, match="b.json is missing"):
        read_json(tmp_path / "b.json")
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}

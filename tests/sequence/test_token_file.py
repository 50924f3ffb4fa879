"""Tokens files: what is saved is loaded, and nothing else is taken for one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lumos.sequence.token_file import About, Tokens, load_tokens, save_tokens
from lumos.weights import fingerprint
from tests.toy_model import toy_tokenizer

OURS, OTHER = (toy_tokenizer(seed=seed) for seed in (0, 1))
ABOUT = About(("a red circle", "ein Kreis"), (3, -1), 8, 1, fingerprint(OURS))
CODES = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) % 50


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_tokens(tmp_path / "x.tokens", Tokens(CODES, ABOUT))
    return tmp_path / "x.tokens"


def test_saved_tokens_come_back(file: Path) -> None:
    tokens = load_tokens(file, OURS, 50)
    assert tokens.about == ABOUT and torch.equal(tokens.codes_BTHW, CODES)
    assert [path.name for path in file.parent.iterdir()] == ["x.tokens"]


def test_codes_of_another_tokenizer_are_refused(file: Path) -> None:
    words = rf"another tokenizer \({fingerprint(OURS)}\) than these weights have \({fingerprint(OTHER)}\)"
    with pytest.raises(ValueError, match=words):
        load_tokens(file, OTHER, 50)
    with pytest.raises(ValueError, match="codes of 0 to 48"):
        load_tokens(file, OURS, 49)


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    other = tmp_path / "other"
    for wrong in (b"", b"not a tokens file at all", whole[:40], whole[: len(whole) // 2]):
        other.write_bytes(wrong)
        with pytest.raises(ValueError, match="must be a tokens file"):
            load_tokens(other, OURS, 50)
    save_file({"codes": CODES}, other)
    with pytest.raises(ValueError, match="must be a tokens file"):
        load_tokens(other, OURS, 50)
    save_tokens(other, Tokens(CODES, replace(ABOUT, seeds=(1,))))  # a seed is missing
    with pytest.raises(ValueError, match="must be a tokens file"):
        load_tokens(other, OURS, 50)
    with pytest.raises(FileNotFoundError, match="no tokens file"):
        load_tokens(tmp_path / "none", OURS, 50)

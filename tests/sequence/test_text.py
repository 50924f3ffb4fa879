"""The small text vocabulary writes any English caption and refuses what it cannot."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from lumos.sequence.text import TextTokenizer, train_text_tokenizer

TEXT = train_text_tokenizer(["a red circle moves to the right", "two blue stars, spinning slowly"] * 3, 120)


def test_known_words_are_short_and_unknown_ones_spelled() -> None:
    assert len(TEXT.encode("a red circle")) == 3 and TEXT.encode("A Réd CIRCLE") == TEXT.encode("a red circle")
    spelled = TEXT.encode("a xylophone!")
    assert len(spelled) > 3 and max(spelled) < TEXT.size


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "a \u200b"])
def test_prompts_that_say_nothing_or_what_cannot_be_seen(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"the prompt has '\\\\u200b'; reword" if "a" in prompt else "must say something"):
        TEXT.encode(prompt)


@pytest.mark.parametrize("prompt", ["красный круг", "红色圆圈", "a \U0001f534 moves", "دائرة"])
def test_other_scripts_are_refused_by_name(prompt: str) -> None:
    with pytest.raises(ValueError, match="reads English"):
        TEXT.encode(prompt)
    with pytest.raises(ValueError, match="reads English"):  # nor does a vocabulary learn them
        train_text_tokenizer([prompt] * 9, 80).encode(prompt)


def test_ids_that_a_tokenizer_adds_by_itself_are_left_out() -> None:
    tokenizer = Tokenizer.from_str(TEXT.tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(single="x $A", special_tokens=[("x", 1)])
    assert TextTokenizer(tokenizer).encode("a red circle") == TEXT.encode("a red circle")


def test_the_words_of_all_captions_are_known() -> None:
    assert TEXT.words == {"a", "red", "circle", "moves", "to", "the", "right", "two", "blue", "stars", "spinning", "slowly"}
    assert train_text_tokenizer(["A T-Rex's two_eyes"], 80).words == {"a", "t-rex's", "two", "eyes"}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    path.write_text(TEXT.tokenizer.to_str())
    assert TextTokenizer.from_file(path).encode("a red circle") == TEXT.encode("a red circle")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="not a text tokenizer"):
        TextTokenizer.from_file(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        TextTokenizer.from_file(tmp_path / "none.json")
    for change in (Tokenizer.enable_truncation, Tokenizer.enable_padding):
        tokenizer = Tokenizer.from_str(TEXT.tokenizer.to_str())
        change(tokenizer, *([16] if change is Tokenizer.enable_truncation else []))
        tokenizer.save(str(path))
        with pytest.raises(ValueError, match=r"text.json: (truncation|padding) must be null, got"):
            TextTokenizer.from_file(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        TextTokenizer.from_file(path)

"""Model folders: whatever is edited in their settings is one line, and nothing takes long."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos.generate import Generator
from lumos.model_folder import load_decoder, load_model, save_model
from lumos.sequence.text import train_text_tokenizer
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from recipes import eight_bits

HOSTILE = [None, True, 0, -1, 1.5, 2**31, 10**5, 10**400, float("nan"), float("inf"), "", "{0}", "{caption.x}", [], [1] * 10**4]
HOSTILE += [{}, {"cosmos": {}}, [[[]]], "tokenizer", 1e-320, 1e308]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


@settings(max_examples=100)
@given(st.data())
def test_edited_settings_are_one_line_or_still_fit(random_folder: Path, data: st.DataObject) -> None:
    part = random_folder / data.draw(st.sampled_from(["config.json", "tokenizer/config.json"]))
    whole = part.read_text()
    document = copy.deepcopy(json.loads(whole))
    path = data.draw(st.sampled_from(list(leaves(document))[1:]))
    place = document
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(st.sampled_from(HOSTILE))
    else:
        del place[path[-1]]
    part.write_text(json.dumps(document))
    try:
        load_decoder(random_folder) if part.parent == random_folder else load_tokenizer(part.parent)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    finally:
        part.write_text(whole)


def test_a_whole_folder_comes_back(random_folder: Path, random_model: Generator) -> None:
    config, model, text, tokenizer = load_model(random_folder)
    assert config == random_model.config and tokenizer.config == random_model.tokenizer.config
    assert (
        text.encode("a red circle") == random_model.text.encode("a red circle") and text.words == random_model.text.words != set()
    )
    found, saved = model.state_dict(), random_model.model.state_dict()
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name].bfloat16()) for name in saved)


def test_a_template_names_what_a_video_has(random_model: Generator) -> None:
    video = random_model.config.video
    assert dataclasses.replace(video, template="{width}x{height}, {frames} at {fps}: {caption}")
    for template in ("{size}", "{caption.x}", "{0}", "{", "{fps!x}"):
        with pytest.raises(ValueError, match="template may name width, height, frames, fps and caption, got"):
            dataclasses.replace(video, template=template)
    with pytest.raises(ValueError, match=r"window must be 1 to latest \+ 1 = 9 latent frames, got 10"):
        dataclasses.replace(video, window=10)


def test_parts_of_another_model_are_refused(random_model: Generator, tmp_path: Path) -> None:
    config, weights = random_model.config, random_model.model.state_dict()
    words = train_text_tokenizer(["other words"], 60)
    codes = VideoTokenizer(dataclasses.replace(random_model.tokenizer.config, levels=(4, 4)))
    for text, tokenizer, said in (
        (words, random_model.tokenizer, f"{config.vocabulary.text_size} text ids, its text_tokenizer.json has {words.size}"),
        (random_model.text, codes, "64 codes for 4 frames of 8x8 pixels, got one with 16 codes"),
    ):
        save_model(tmp_path / "model", config, weights, text, tokenizer)
        with pytest.raises(ValueError, match=said):
            load_model(tmp_path / "model")


def test_a_folder_in_eight_bits_is_the_same_model_with_the_same_words(random_folder: Path, tmp_path: Path) -> None:
    eight_bits.main(random_folder, tmp_path / "small")
    (config, model, text, tokenizer), whole = load_model(tmp_path / "small"), load_model(random_folder)
    assert (config, text.words, tokenizer.config) == (whole[0], whole[2].words, whole[3].config) and text.words
    plain = whole[1]
    assert (model.head - plain.head).abs().max() < 0.01 * plain.head.abs().max()

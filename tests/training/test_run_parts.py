"""What a run is put together from: new words that keep what the weights know, and whether a step fits into the card."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lumos.data.shards import CODES
from lumos.model.transformer import LUMOS_1B, Transformer
from lumos.model_folder import save_model
from lumos.ranks import ALONE, Ranks
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import LUMOS, small_vocabulary
from lumos.tokenizer.model import save_tokenizer
from lumos.training.config import Sources, TrainModelConfig
from lumos.training.parallel import ParallelConfig
from lumos.training.run_parts import SAMPLE_PROMPTS, RunParts, _check_memory, carried_over, gather_parts
from tests.tokenizer.small import COSMOS, made
from tests.toy_model import toy_tokenizer
from tests.training.toys import TOY


def gather(config: TrainModelConfig, tokenizer: Path, init: Path | None = None, text_file: Path | None = None) -> RunParts:
    return gather_parts(config, tokenizer, Sources(init=init, text=text_file), ALONE)


def test_weights_of_two_sub_codes_are_started_from(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.sequence.vocabulary.MOST_ROWS", 24)  # so that 25 codes are two sub-codes of 5
    parts = gather(TOY, tokenizer)
    assert parts.config.model.sub_codes == parts.vocabulary.sub_codes == 5
    model = Transformer(parts.config.model)
    model.initialise(torch.Generator().manual_seed(0))
    save_model(tmp_path / "base", parts.folder, model.state_dict(), parts.text, parts.tokenizer)
    monkeypatch.setattr("lumos.training.run_parts.sample_captions", lambda *_: ["a yellow zebra"])
    again = gather(TOY, tokenizer, tmp_path / "base")
    assert {"circle"} < parts.text.words < again.text.words == parts.text.words | {"zebra"}  # of old and new captions
    assert again.folder == parts.folder and again.initial is not None
    assert all(torch.equal(tensor, again.initial[name].float()) for name, tensor in model.bfloat16().float().state_dict().items())
    for more, words in (({"ffn": 64}, "of this preset's shape, got ffn=32;"), ({"layers": 2}, "got layers=1; use")):
        with pytest.raises(ValueError, match=words):
            gather(replace(TOY, model=replace(TOY.model, **more)), tokenizer, tmp_path / "base")
    save_tokenizer(tmp_path / "nine", toy_tokenizer((3, 3)))
    with pytest.raises(ValueError, match="the tokenizer must have the 25 codes of .*, got 9"):
        gather(TOY, tmp_path / "nine", tmp_path / "base")


def test_words_of_every_caption_of_a_sticker_are_known(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos.training.run_parts.own_captions", lambda _: ["a rare okapi"])
    assert "okapi" in gather(TOY, tokenizer).text.words


def test_sample_sheets_show_what_is_trained_on(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = gather(replace(TOY, video=replace(TOY.video, temporal=2, spatial=4)), tokenizer)
    assert parts.sample_prompts() == SAMPLE_PROMPTS and parts.config.video == TOY.video  # with the tokenizer's numbers
    monkeypatch.setattr("lumos.training.run_parts.captions_by_clip", lambda *_: [["a zebra"], ["\u732b"]])
    monkeypatch.setattr("lumos.training.run_parts.fits_as_prompt", lambda prompts, caption, height, width: caption.isascii())
    shards: Any = SimpleNamespace(index=SimpleNamespace(form=CODES), prompts=None)
    for share, shown in ((0.5, (*SAMPLE_PROMPTS[:3], "a zebra")), (1.0, ("a zebra",))):
        parts = gather(replace(TOY, data_share=share), tokenizer)._replace(shards=shards)
        assert parts.sample_prompts() == shown
    no_worlds = replace(parts.config, worlds=None, data_share=0.5)
    assert parts._replace(config=no_worlds).sample_prompts() == ("a zebra",)


def test_captions_must_fit_into_the_places_for_prompts(tokenizer: Path) -> None:
    for setting in ({"video": replace(TOY.video, slots=4)}, {"text_vocabulary": 60}):  # as cut, or nearly spelt
        with pytest.raises(ValueError, match=r"video.slots must be at least \d+ for captions of the worlds, got"):
            gather(replace(TOY, **setting), tokenizer)


def test_the_published_vocabulary_needs_its_text_and_its_codes(tokenizer: Path, tmp_path: Path) -> None:
    config = replace(TOY, model=replace(TOY.model, vocabulary=LUMOS.size))
    for text_file, words in ((None, "got none; give --text"), (tmp_path / "text.json", "has 64000 codes, got a tokenizer of 25")):
        with pytest.raises(ValueError, match=words):
            gather(config, tokenizer, text_file=text_file)
    save_tokenizer(tmp_path / "cosmos", made(COSMOS))
    with pytest.raises(ValueError, match="the built-in worlds need a tokenizer trained on them, got a Cosmos one"):
        gather(TOY, tmp_path / "cosmos")


def test_words_of_both_keep_their_rows_and_new_ones_are_the_mean_of_their_pieces() -> None:
    captions = ["a red circle moves to the right", "two blue stars", "a green ring spins"] * 3
    old_text = train_text_tokenizer(captions, 120)
    new_text = train_text_tokenizer([*captions, *["an octopus waving its arms"] * 9], 160)
    old, new = (small_vocabulary(text.size, codes=25) for text in (old_text, new_text))
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(old.size, 8, generator=draw) for name in ("embedding", "head", "layers.0.ffn_down")}
    found = carried_over(weights, old_text, old, new_text, new)
    old_ids, new_ids = (text.tokenizer.get_vocab() for text in (old_text, new_text))
    shared, fresh = old_ids.keys() & new_ids.keys(), new_ids.keys() - old_ids.keys()
    assert len(shared) > 40 and any("octopus" in word for word in fresh)
    for name in ("embedding", "head"):
        before, after = weights[name], found[name]
        assert len(after) == new.size and torch.equal(after[new.text_size :], before[old.text_size :])
        assert all(torch.equal(after[new_ids[word]], before[old_ids[word]]) for word in shared)
        for word in fresh:
            pieces = [piece.id for piece in old_text.tokenizer.model.tokenize(word)]
            torch.testing.assert_close(after[new_ids[word]], before[pieces].mean(0))
    assert found["layers.0.ffn_down"] is weights["layers.0.ffn_down"]


def test_a_run_that_will_not_fit_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    large = replace(TOY, model=LUMOS_1B, worlds=None, parallel=ParallelConfig(shard=True, recompute="full"))
    ranks, vocabulary = Ranks(0, 1, torch.device("cuda")), small_vocabulary(100, 64_000)
    with pytest.raises(ValueError, match=r"fit into the 24 GiB here, got about \d+ GiB .*; use at least 2 GPUs"):
        _check_memory(large, vocabulary, ranks)
    _check_memory(replace(large, model=replace(TOY.model, vocabulary=64_100)), vocabulary, ranks)
    monkeypatch.setattr("lumos.training.run_parts.free_memory", lambda device: 2.0**34)
    with pytest.raises(ValueError, match=r"fit into the 16 GiB here, got about \d+ GiB .*; use fewer --set videos="):
        _check_memory(large, vocabulary, ALONE)
    _check_memory(replace(large, model=replace(TOY.model, vocabulary=64_100)), vocabulary, ALONE)

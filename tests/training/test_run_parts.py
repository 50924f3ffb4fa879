"""What a run is put together from: new words that keep what the weights know, and whether a step fits into the card."""

from dataclasses import replace

import pytest
import torch

from lumos.model.transformer import LUMOS_1B
from lumos.sequence.text import train_text_tokenizer
from lumos.sequence.vocabulary import small_vocabulary
from lumos.training.parallel import ParallelConfig, Ranks
from lumos.training.run_parts import _check_memory, carried_over
from tests.training.toys import TOY


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
    with pytest.raises(ValueError, match=r"fit into the 24 GiB of this GPU, got about \d+ GiB .*; use at least 2 GPUs"):
        _check_memory(large, vocabulary, ranks)
    _check_memory(replace(large, model=replace(TOY.model, vocabulary=64_100)), vocabulary, ranks)

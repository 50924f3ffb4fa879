"""A trained model with other words: known words keep their meaning, everything that is not text stays as it is."""

import torch

from lumos.sequence.text import TextTokenizer, train_text_tokenizer
from lumos.sequence.vocabulary import Vocabulary, small_vocabulary
from lumos.training.run_parts import carried_over

OLD = ["a red circle moves to the right", "two blue stars", "a green ring spins"] * 3
NEW = [*OLD, *["an octopus waving its arms"] * 9]


def made(captions: list[str], size: int) -> tuple[TextTokenizer, Vocabulary, dict[str, torch.Tensor]]:
    text = train_text_tokenizer(captions, size)
    vocabulary = small_vocabulary(text.size, codes=25)
    draw = torch.Generator().manual_seed(0)
    names = ("embedding", "head", "layers.0.ffn_down")
    return text, vocabulary, {name: torch.randn(vocabulary.size, 8, generator=draw) for name in names}


def test_words_of_both_keep_their_rows_and_new_ones_are_the_mean_of_their_pieces() -> None:
    old_text, old, weights = made(OLD, 120)
    new_text, new, _ = made(NEW, 160)
    found = carried_over(weights, old_text, old, new_text, new)
    old_ids, new_ids = (text.tokenizer.get_vocab() for text in (old_text, new_text))
    shared, fresh = old_ids.keys() & new_ids.keys(), new_ids.keys() - old_ids.keys()
    assert len(shared) > 40 and any("octopus" in word for word in fresh)
    for name in ("embedding", "head"):
        for word in shared:
            assert torch.equal(found[name][new_ids[word]], weights[name][old_ids[word]])
        for word in fresh:
            pieces = [piece.id for piece in old_text.tokenizer.model.tokenize(word)]
            torch.testing.assert_close(found[name][new_ids[word]], weights[name][pieces].mean(0))


def test_structure_and_codes_keep_their_rows_and_other_weights_are_the_same() -> None:
    old_text, old, weights = made(OLD, 120)
    new_text, new, _ = made(NEW, 160)
    found = carried_over(weights, old_text, old, new_text, new)
    for name in ("embedding", "head"):
        assert len(found[name]) == new.size
        for field in ("begin", "separator", "mask", "newline", "number_zero"):
            assert torch.equal(found[name][getattr(new, field)], weights[name][getattr(old, field)])
        assert torch.equal(found[name][new.first_code :], weights[name][old.first_code :])
    assert found["layers.0.ffn_down"] is weights["layers.0.ffn_down"]

"""Codes of two sub-codes: one distribution over all codes, the same in training and in sampling."""

from dataclasses import replace

import pytest
import torch

from lumos.diffusion.draw import Guess
from lumos.diffusion.frame_model import FrameModel
from lumos.diffusion.loss import code_loss
from lumos.generate import Generator
from lumos.model.attention import dense
from lumos.sequence.layout import Grid, content_ids, content_of, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary

SUB_CODES = 4


def test_probabilities_of_all_codes_add_up_to_one(sub_toy: Generator) -> None:
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(SUB_CODES**2, -1)
    codes = torch.arange(SUB_CODES**2)
    total, loss = code_loss(sub_toy.model, sub_toy.config.vocabulary, hidden, codes, 2 * torch.ones(len(codes)))
    torch.testing.assert_close(total, 2 * loss.sum())
    share = (-loss).exp().view(SUB_CODES, SUB_CODES)
    assert float(share.sum()) == pytest.approx(1, abs=1e-5)
    # the second depends on the first: side by side, all columns would be multiples of one
    assert float((share / share.sum(0)).std(1).max()) > 0.01


def test_sampling_draws_from_what_training_fits(sub_toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probability of every drawn code, behind prompt and cache, is minus its loss in a pass over the whole sequence."""
    guesses, predict, prompt, vocabulary = [], FrameModel.predict, "a red circle", sub_toy.config.vocabulary

    def keep(*arguments: object) -> Guess:
        guesses.append(predict(*arguments))  # type: ignore[arg-type]
        return guesses[-1]

    monkeypatch.setattr(FrameModel, "predict", keep)
    record: list[torch.Tensor] = []
    for _ in sub_toy.stream(prompt, frames=5, steps=1, guidance=1.0, history=0.0, record=record):
        pass
    codes, grid = torch.stack(record, dim=1), Grid(4, 4)
    content = content_ids(vocabulary, codes)
    content[:, 1, :, :-1] = vocabulary.mask  # frame 0 is history, frame 1 is drawn
    batch = pack(vocabulary, grid, *text_batch(vocabulary, [sub_toy.text.encode(prompt)], 64), content, 1, 8)
    hidden = sub_toy.model(batch.ids_BL, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
    hidden = content_of(grid, hidden, 64, 2)[0, 1, :, :-1].flatten(0, 1)
    _, loss = code_loss(sub_toy.model, vocabulary, hidden, codes[0, 1].flatten(), torch.ones(16))
    torch.testing.assert_close(guesses[1].log_probability_BM[0], -loss, rtol=1e-3, atol=1e-3)
    assert len(set(codes.flatten().tolist())) > SUB_CODES  # both halves are drawn


def test_both_sub_codes_have_random_numbers_of_their_own(sub_toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sub_toy.model._parameters, "head", torch.zeros_like(sub_toy.model.head))
    record: list[torch.Tensor] = []
    for _ in sub_toy.stream("a red circle", frames=1, steps=1, guidance=1.0, record=record):
        pass
    assert float((record[0] % SUB_CODES == record[0] // SUB_CODES).float().mean()) < 0.5  # of equal ones all would be


def test_a_code_is_shown_as_the_sum_of_its_rows(sub_toy: Generator) -> None:
    first, table = sub_toy.config.vocabulary.first_code, sub_toy.model.embedding
    shown = sub_toy.model.embed(torch.tensor([sub_toy.config.vocabulary.mask, first + 3 + SUB_CODES * 2, 0]))
    torch.testing.assert_close(shown[1], table[first + 3] + table[first + SUB_CODES + 2])
    assert torch.equal(shown[[0, 2]], table[[sub_toy.config.vocabulary.mask, 0]])


def test_sub_codes_that_do_not_spell_the_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="64, got 65"):
        replace(small_vocabulary(10, 64), codes=65, sub_codes=8)

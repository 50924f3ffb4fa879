"""Another text vocabulary for a trained model: old weights in, weights of the same model for new words out.

A new word starts as the mean of the pieces that the old vocabulary spells it with, so what the model knew of it is kept.
"""

import torch
from torch import Tensor

from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary


def carried_over(
    weights: dict[str, Tensor], old_text: TextTokenizer, old: Vocabulary, new_text: TextTokenizer, new: Vocabulary
) -> dict[str, Tensor]:
    """`weights` of a model with `old` ids as those of one with `new` ids. Both vocabularies must differ in their text alone."""
    if old.size - old.text_size != new.size - new.text_size or old.codes != new.codes:
        raise ValueError(f"vocabularies must differ in their text alone, got {old} and {new}; use the same tokenizer")
    share_NO = torch.zeros(new.text_size, old.text_size)
    for word, row in new_text.tokenizer.get_vocab(with_added_tokens=True).items():
        known = old_text.tokenizer.token_to_id(word)
        pieces = [known] if known is not None else [piece.id for piece in old_text.tokenizer.model.tokenize(word)]
        for piece in pieces:
            share_NO[row, piece] += 1 / len(pieces)
    found = dict(weights)
    for name in ("embedding", "head"):
        text_OD, rest_RD = weights[name].split([old.text_size, old.size - old.text_size])
        found[name] = torch.cat([(share_NO @ text_OD.float()).to(text_OD.dtype), rest_RD])
    return found

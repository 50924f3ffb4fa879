"""Captions <-> text ids, through a Hugging Face `tokenizers` file (JSON: it cannot run code).

`TextTokenizer` serves the published models (Chameleon's file) and our own small ones, whose file `train_text_tokenizer` makes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lumos.config import check_not_a_pointer
from lumos.files import text_of

UNKNOWN = "<unknown>"
WORDS_FILE = "words.txt"  # beside a model's text tokenizer: the words of the captions that it learnt from
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class TextTokenizer:
    """A prompt -> ids of one vocabulary. words: those that the model met in training; none where they are not known."""

    def __init__(self, tokenizer: Tokenizer, words: Iterable[str] = ()) -> None:
        self.tokenizer, self.words = tokenizer, frozenset(words)

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        if not path.is_file():
            raise FileNotFoundError(f"a prompt needs the text tokenizer file {path}, which is missing; copy it into the folder")
        check_not_a_pointer(path)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except BaseException as error:  # plain Exception for most malformed files; for others the library panics
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError(f"{path} is not a text tokenizer file ({error}); copy the original again") from None
        for name, value in (("truncation", tokenizer.truncation), ("padding", tokenizer.padding)):
            if value is not None:  # prompts would be cut or filled up in silence
                raise ValueError(f"{path}: {name} must be null, got {value!r:.80}; set it to null")
        words = path.with_name(WORDS_FILE)
        return cls(tokenizer, text_of(words).split() if words.is_file() else ())

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: str) -> list[int]:
        """Ids of one prompt; an empty one, or characters this vocabulary does not know, is a ValueError."""
        if not prompt.strip():
            raise ValueError("a prompt must say something, got an empty one; describe what the video shows")
        encoding = self.tokenizer.encode(prompt, add_special_tokens=False)
        unknown = self.tokenizer.token_to_id(UNKNOWN)
        if unknown is not None and unknown in encoding.ids:
            bad = sorted({c for c in prompt if unknown in self.tokenizer.encode(c, add_special_tokens=False).ids})
            shown = " ".join(ascii(c)[1:-1] if not c.isprintable() else c for c in bad[:8])
            raise ValueError(f"this model reads English in a-z, 0-9 and .,'-!?:;\"()&, the prompt has {shown!r}; reword it")
        return list(encoding.ids)


def train_text_tokenizer(captions: Iterable[str], size: int) -> TextTokenizer:
    """A byte-pair vocabulary of at most `size` ids over lower-case words; every letter and digit is always in it."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,'-!?:;\"()&\u2581")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[UNKNOWN], initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    words: set[str] = set()

    def noted(caption: str) -> str:  # in one pass: captions of a large set are never all in memory
        words.update(words_in(caption))
        return caption

    tokenizer.train_from_iterator(map(noted, captions), trainer)
    return TextTokenizer(tokenizer, words)


def words_in(text: str) -> set[str]:
    """The words of a text, in lower case: "A t-rex's cub." has a, t-rex's and cub."""
    return set(WORD.findall(text.lower()))

"""The ids of the one sequence: text, structure and visual codes side by side (paper section 3.1).

The only file with a literal id. `LUMOS` is the vocabulary of the published models (Chameleon's text vocabulary plus the
64,000 codes of Cosmos DV4x8x8); `small_vocabulary` makes one of the same form for a model trained from scratch.

A place whose code is one of millions has two sub-codes instead (`sub_codes`): code c is sub-codes c % sub_codes and
c // sub_codes, with an embedding and a row of the head each. It still takes one place of the sequence, and one id.
"""

import math
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Vocabulary:
    """Where every kind of id lies. All fields are ids but `size`, `text_size`, `numbers`, `codes` and `sub_codes`: counts."""

    size: int
    text_size: int  # text ids are 0 ... text_size - 1
    begin: int  # first id of every sequence
    separator: int  # ends the prompt, and ends the sample
    video_start: int
    video_end: int
    frame_start: int
    frame_end: int
    newline: int  # ends every row of a frame's codes
    number_zero: int  # number n is id number_zero + n
    numbers: int
    mask: int
    first_code: int  # visual code c is id first_code + c
    codes: int  # that a place may have
    # how many the first sub-code of a code may be, and the second: then the embedding has 2 x sub_codes rows for all codes, and
    # ids of codes go beyond it; 0 = a row per code
    sub_codes: int = field(default=0, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.sub_codes and self.codes != self.sub_codes**2:
            raise ValueError(f"codes must be sub_codes squared, {self.sub_codes**2}, got {self.codes}")
        values = asdict(self) | {"codes": self.code_rows}
        last_code = self.first_code + self.code_rows - 1
        ends = {**values, "number_zero": self.number_zero + self.numbers - 1, "first_code": last_code}
        for name, last in ends.items():
            if values[name] < 0 or last >= self.size + (name in ("size", "text_size", "numbers", "codes", "sub_codes")):
                raise ValueError(f"{name} must lie inside the vocabulary of {self.size} ids, got {values[name]}")

    @property
    def code_rows(self) -> int:
        """Rows of the embedding, and of the head, for codes."""
        return 2 * self.sub_codes or self.codes

    @property
    def choices(self) -> int:
        """What one draw chooses from: the codes, or the sub-codes of either kind."""
        return self.sub_codes or self.codes

    def number(self, n: int) -> int:
        """Id of the number n (a grid size in units of 32 pixels, a duration in seconds, or frames per second)."""
        if not 0 <= n < self.numbers:
            raise ValueError(f"a size, duration or frame rate must be 0 to {self.numbers - 1} in this vocabulary, got {n}")
        return self.number_zero + n


LUMOS = Vocabulary(
    size=129_536,
    text_size=65_536,
    begin=0,
    separator=8710,
    video_start=9004,
    video_end=9005,
    frame_start=8197,
    frame_end=8196,
    newline=8803,
    number_zero=8804,
    numbers=199,
    mask=9003,
    first_code=65_536,
    codes=64_000,
)

MOST_ROWS = 2**17  # of the embedding, for codes; of more codes each has two sub-codes

# Chameleon's text ids that this project has to know: the published prompts spell numbers with one id a digit, and
# pre-tokenised records of the authors leave two numbers open (their ids are those of codes, but stand among text).
DIGIT_ZERO = 16_399
OPEN_FRAMES = 65_539
OPEN_FPS = 65_540
# The published sentence up to the caption, as the authors' records have it: "Generate a video with a resolution of 672x384,
# consisting of _ frames at _ frames per second, according to the following prompt:" and a line feed.
SENTENCE: tuple[int, ...] = (22807, 16758, 16641, 18677, 16734, 16641, 23544, 16673, 16604)
SENTENCE += (16405, 16406, 16401, 16471, 16402, 16407, 16403)  # 672x384
SENTENCE += (16395, 31291, 16673, 16604, OPEN_FRAMES, 32559, 16767, 16604, OPEN_FPS, 32559, 16972, 17711, 16395)
SENTENCE += (18745, 16671, 16647, 18211, 24643, 16409, 16582)


def small_vocabulary(text_size: int, codes: int, numbers: int = 64) -> Vocabulary:
    """Text ids first, then the structure ids, the numbers and the codes: nothing unused, for a model trained from scratch.

    ValueError for more codes than MOST_ROWS that are no square.
    """
    special, sub_codes = text_size, 0 if codes <= MOST_ROWS else math.isqrt(codes)
    if sub_codes and sub_codes**2 != codes:
        raise ValueError(f"a tokenizer must have at most {MOST_ROWS} codes, or the square of a number, got {codes}")
    return Vocabulary(
        size=text_size + 8 + numbers + (2 * sub_codes or codes),
        text_size=text_size,
        begin=special,
        separator=special + 1,
        video_start=special + 2,
        video_end=special + 3,
        frame_start=special + 4,
        frame_end=special + 5,
        newline=special + 6,
        mask=special + 7,
        number_zero=special + 8,
        numbers=numbers,
        first_code=special + 8 + numbers,
        codes=codes,
        sub_codes=sub_codes,
    )

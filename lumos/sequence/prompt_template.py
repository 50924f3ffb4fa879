"""What the published models expect: the sentence around a caption, the numbers in it, and frame sizes (their training data).

Text ids of the authors' pre-tokenised records hold that sentence with two numbers left open, so that a part of a video can
be trained on; `fill_numbers` closes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import DIGIT_ZERO, OPEN_FPS, OPEN_FRAMES, SENTENCE

# The space after the line feed belongs to it.
TEMPLATE = (
    "Generate a video with a resolution of {width}x{height}, consisting of {frames} frames at {fps} frames per second, "
    "according to the following prompt:\n {caption}"
)
SIZES = ((448, 256), (672, 384))  # "256p" and "384p", width x height; `crops` gives the other shapes
UNIT = 32
MOST_RATIO = 4


def crops(width: int, height: int) -> list[tuple[int, int]]:
    """Every (width, height) of about the area of the given one, widest first. Sides are multiples of 32 pixels, one at most 4
    times the other, and the area is at most the given one but would be more if both sides grew by 32."""
    for side in (width, height):
        if side < UNIT or side % UNIT:
            raise ValueError(f"width and height must be multiples of {UNIT}, got {width}x{height}; use 448x256 or 672x384")
    area = (width // UNIT) * (height // UNIT)
    return [
        (columns * UNIT, rows * UNIT)
        for columns in range(area, 0, -1)
        for rows in range(1, area // columns + 1)
        if (columns + 1) * (rows + 1) > area and max(columns, rows) <= MOST_RATIO * min(columns, rows)
    ]


@dataclass(frozen=True)
class PromptReader:
    """Prompts -> text ids of one model. It holds no weights and needs no torch: a server checks prompts with it."""

    text: TextTokenizer
    template: str  # the text around a prompt
    most: int  # text ids of a prompt
    frames: int  # of a whole clip: no more seconds than it has are spoken of
    fps: int
    temporal: int  # frames per latent frame

    def ids(self, prompt: str, frames: int, height: int, width: int) -> list[int]:
        """Text ids of one prompt inside the template; too long a prompt is a ValueError."""
        ids = self.text.encode(prompt)
        if self.template != "{caption}":
            ids = self.text.encode(self.sentence(prompt, frames, height, width))
        if len(ids) > self.most:
            raise ValueError(f"a prompt may have at most {self.most} text ids (words or parts), got {len(ids)}; shorten it")
        return ids

    def sentence(self, caption: str, frames: int, height: int, width: int) -> str:
        """The template around a caption."""
        said, fps = self.numbers(frames)
        return self.template.format(width=width, height=height, frames=said, fps=fps, caption=caption)

    def numbers(self, frames: int) -> tuple[int, int]:
        """Frames, and frames per second, that are spoken of."""
        seconds, fps = clock(min(frames, self.frames), self.fps)
        return said_frames(1 + (frames - 1) // self.temporal, seconds, fps, self.temporal), fps


def clock(frames: int, fps: int) -> tuple[int, int]:
    """(seconds, frames per second) as the video's header says them; an image (one frame) is 1 and 1."""
    return (1, 1) if frames == 1 else (max(1, round(frames / fps)), fps)


def said_frames(latent_frames: int, seconds: int, fps: int, temporal: int = 4) -> int:
    """How many frames the sentence speaks of: 1 for an image, whole seconds where they need exactly these latent frames.

    7 latent frames at 12 frames a second are 2 seconds, "24 frames", though they decode to 25; otherwise what they decode to.
    """
    if latent_frames == 1:
        return 1
    whole = seconds * fps
    return whole if math.ceil((whole - 1) / temporal) + 1 == latent_frames else 1 + temporal * (latent_frames - 1)


def fill_numbers(text: Sequence[int], frames: int, fps: int) -> list[int]:
    """Text ids with the two open numbers written out, one id a digit."""
    numbers = {OPEN_FRAMES: str(frames), OPEN_FPS: str(fps)}
    return [id for i in text for id in ([DIGIT_ZERO + int(digit) for digit in numbers[i]] if i in numbers else [i])]


def check_text(text: TextTokenizer) -> None:
    """ValueError unless the tokenizer writes the published sentence with the ids that the published models know."""
    expected = fill_numbers(SENTENCE, 84, 12)
    found = text.encode(TEMPLATE.format(width=672, height=384, frames=84, fps=12, caption="A"))[: len(expected)]
    if found != expected:
        raise ValueError(
            "the text tokenizer must be the published models' own (Chameleon's text_tokenizer.json), got one that writes "
            "their prompt with other ids; copy the file that is released with the checkpoint"
        )

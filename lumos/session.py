"""A video that goes on for as long as it is asked for, and is told on the way what it shows.

A session is its codes, and its turns: which prompt and seed hold from which latent frame on. The model's cache and the decoder's
memory follow from these, and are made anew whenever they are missing: after a new sentence, a step back, a copy or a file. Random
numbers depend on seed, prompt and latent frame alone, so that all of this is exact.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lumos.config import Range
from lumos.diffusion.frame_model import OVERLAP, FrameModel, PictureOf, VideoSpec, origin_of
from lumos.diffusion.sampler import Progress, SamplerConfig, place_noise, sample_frame
from lumos.files import check_writable
from lumos.sequence.token_file import About, Tokens, save_tokens
from lumos.tokenizer.compression import latent_frames, pixel_frames
from lumos.tokenizer.layers import StreamState
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

MOST_TURNS = 10_000
REREAD = 1  # latent frames that a new sentence's video begins with; its last picture is read, as in a video from a picture
FrameModelOf = Callable[[VideoSpec, list[list[int]], list[int], SamplerConfig, PictureOf], FrameModel]


@dataclass(frozen=True)
class Turn:
    """What holds from a latent frame on."""

    start: Annotated[int, Range(0, 2**40)]  # number of the latent frame
    prompt: str
    seed: int
    origin: Annotated[int, Range(0, 2**40)] = 0  # latent frame that its time counts from: those before it are not seen


@dataclass(frozen=True)
class Course:
    """What a session is beside its codes; a tokens file keeps it as JSON."""

    turns: tuple[Turn, ...]  # the first starts behind the frames that were given
    settings: SamplerConfig
    shown: Annotated[int, Range(0, 2**40)] = 0  # latent frames that were yielded, given ones included
    keyframes: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...] = ()  # pixel frame, and codes of a picture that shows it

    def __post_init__(self) -> None:
        starts = [turn.start for turn in self.turns]
        if not starts or sorted(set(starts)) != starts:
            raise ValueError(f"turns must start one after another, got {starts}; use the file as it was saved")


class Player:
    """Latent frames -> pixels, one after another, and the newest pictures as codes of pictures alone."""

    def __init__(self, tokenizer: VideoTokenizer, codes: list[Tensor]) -> None:
        """codes: codes_BHW (or codes_HW) of every latent frame so far; whoever makes more appends them."""
        self.tokenizer, self.codes = tokenizer, codes
        self.state, self.shown = StreamState(), 0
        self.pictures: dict[int, Tensor] = {}  # the last one of the newest latent frames, pixels_BCHW

    def show(self, number: int) -> Tensor:
        """pixels_BCFHW in [-1, 1] of a latent frame: 1 picture of a video's first, `temporal` of each later one."""
        if number != self.shown:  # as many before it as pixels, and the pictures kept, depend on
            self.state, self.shown = StreamState(), max(0, number - self.tokenizer.reach - OVERLAP)
        while self.shown <= number:
            codes = self.codes[self.shown]
            pixels_BCFHW = self.tokenizer.decode_next(codes.view(-1, *codes.shape[-2:]), self.state).float()
            self.pictures[self.shown] = pixels_BCFHW[:, :, -1]
            self.pictures.pop(self.shown - OVERLAP, None)
            self.shown += 1
        return pixels_BCFHW

    def picture(self, number: int) -> Tensor:
        """codes_BN of the last picture of a latent frame, as they are of a video's first."""
        if number not in self.pictures:
            other = Player(self.tokenizer, self.codes)
            other.show(number)
            self.pictures[number] = other.pictures[number]
        return self.tokenizer.encode(self.pictures[number][:, :, None]).flatten(1)


class Session:
    """An iterator of pixels_BCFHW in [-1, 1] without end, B = 1: one frame first, then those of one latent frame at a time."""

    def __init__(
        self,
        model_of: FrameModelOf,
        read_prompt: Callable[[str], list[int]],
        tokenizer: VideoTokenizer,
        spec: VideoSpec,
        course: Course,
        codes: Sequence[Tensor],
        progress: Progress | None = None,
    ) -> None:
        """read_prompt: a prompt's ids, or ValueError. codes: codes_HW of all latent frames so far. progress: called with (steps
        done, all of them) of each latent frame; what it raises leaves the session as it was."""
        self.model_of, self.read_prompt, self.tokenizer, self.spec = model_of, read_prompt, tokenizer, spec
        self.course, self.codes, self.progress = course, list(codes), progress
        self._model: FrameModel | None = None  # has read the newest turn's prompt
        self._read = 0  # latent frames that are history to it
        self._player = Player(tokenizer, self.codes)
        self.read_prompt(course.turns[-1].prompt)

    @property
    def frames(self) -> int:
        """Pixel frames so far."""
        return pixel_frames(len(self.codes), self.tokenizer.temporal)

    @property
    def sentences(self) -> list[tuple[int, str]]:
        """(number of the first pixel frame, prompt) of everything that was said."""
        said = [next(turns) for _, turns in groupby(self.course.turns, key=lambda turn: turn.prompt)]
        return [(pixel_frames(turn.start, self.tokenizer.temporal), turn.prompt) for turn in said]

    def __iter__(self) -> Iterator[Tensor]:
        return self

    @torch.inference_mode()
    def __next__(self) -> Tensor:
        make_next([self])
        pixels_BCFHW = self._player.show(self.course.shown)
        self.course = replace(self.course, shown=self.course.shown + 1)
        return pixels_BCFHW

    def say(self, prompt: str) -> None:
        """Have another prompt hold from the next latent frame on. ValueError for one that the model cannot read."""
        self.read_prompt(prompt)
        self._turn(len(self.codes), prompt, self.course.turns[-1].seed)

    def back(self, frames: int) -> None:
        """Forget so many pixel frames, and make what follows with the next seed. ValueError unless they are whole latent frames
        that were made here."""
        temporal, made = self.tokenizer.temporal, self.frames
        most = made - pixel_frames(self.course.turns[0].start, temporal)
        if not 0 <= frames <= most or (frames % temporal and frames < made):
            rule = f"frames to go back must be a multiple of {temporal} up to the {most} made here, or all"
            raise ValueError(f"{rule}, got {frames}")
        left = latent_frames(made - frames, temporal) if frames < made else 0
        held = [turn for turn in self.course.turns if turn.start <= left][-1]
        self._turn(left, held.prompt, self.course.turns[-1].seed + 1)
        del self.codes[left:]
        self.course = replace(self.course, shown=min(self.course.shown, left))
        self._player = Player(self.tokenizer, self.codes)

    def fork(self) -> "Session":
        """Another session that goes on from here."""
        return Session(self.model_of, self.read_prompt, self.tokenizer, self.spec, self.course, self.codes, self.progress)

    def save(self, file: str | Path, overwrite: bool = False) -> None:
        """Write a tokens file, which `Generator.load_session` goes on from and `lumos generate --from-tokens` decodes."""
        check_writable(Path(file), overwrite)
        if not self.codes:
            raise ValueError("a session must have a frame to be saved, got none; take one first")
        first, last = self.course.turns[0], self.course.turns[-1]
        course, whose = json.dumps(asdict(self.course)), fingerprint(self.tokenizer)
        about = About((last.prompt,), (last.seed,), self.spec.fps, first.start, whose, course)
        save_tokens(Path(file), Tokens(torch.stack(self.codes)[None], about))

    def _turn(self, start: int, prompt: str, seed: int) -> None:
        """Have prompt and seed hold from latent frame `start` on."""
        turns = [turn for turn in self.course.turns if turn.start < start]
        last = turns[-1] if turns else Turn(0, prompt, seed)
        if not turns or (last.prompt, last.seed) != (prompt, seed):
            turns.append(Turn(start, prompt, seed, last.origin if last.prompt == prompt else start - REREAD))
        if len(turns) > MOST_TURNS:
            raise ValueError(f"a session may have at most {MOST_TURNS} sentences, got one more; begin another")
        if tuple(turns) != self.course.turns:
            self.course = replace(self.course, turns=tuple(turns))
            self._model = None

    def _shape(self) -> tuple[Any, ...]:
        """What must be alike in sessions whose next latent frames are made together; first the settings."""
        number, grid = len(self.codes), self.spec.grid
        settings = self.course.settings.for_frame(number, grid.rows * grid.columns)
        return settings, self.model_of, self.progress, grid, tuple(place_noise(settings, number - self.course.turns[-1].start))

    def _ready(self) -> tuple[FrameModel, int]:
        """The model with all frames read, and the number of the next."""
        number = len(self.codes)
        model, self._model = self._model or self._reread(), None  # one that fails half way is read anew
        for past in range(self._read, number):
            model.commit(past, self.codes[past].flatten()[None])
        self._model, self._read = model, number
        return model, number

    def _reread(self) -> FrameModel:
        """A model that has read the newest turn's prompt, and is to read the frames in view next."""
        number, turn = len(self.codes), self.course.turns[-1]
        device = next(self.tokenizer.parameters()).device
        keyframes = {at: torch.tensor(codes, device=device) for at, codes in self.course.keyframes}
        self._read = origin = origin_of(number, turn.origin, self.spec.latest)
        spec = replace(self.spec, given=turn.start, origin=origin, retold=turn.origin or None, keyframes=keyframes)
        return self.model_of(spec, [self.read_prompt(turn.prompt)], [turn.seed], self.course.settings, self._player.picture)


@torch.inference_mode()
def make_next(sessions: Iterable[Session]) -> None:
    """Make the latent frame that `next` will show of each, of those alike in the same passes: the one that it would make alone.

    Alike are those of one generator with the same size, settings and `progress`; what `progress` raises leaves them as they were.
    """
    groups: dict[tuple[Any, ...], list[Session]] = {}
    for session in dict.fromkeys(each for each in sessions if each.course.shown == len(each.codes)):
        groups.setdefault(session._shape(), []).append(session)
    for (settings, *_), group in groups.items():
        (model, number), *beside = [session._ready() for session in group]
        # a copy, so that no session holds what others have cached longer than this
        codes_BN = sample_frame(copy(model), settings, number, group[0].progress, beside)
        for session, codes_N in zip(group, codes_BN, strict=True):
            session.codes.append(codes_N.view(session.spec.grid.rows, -1).clone())

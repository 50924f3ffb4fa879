"""Prompts (and perhaps an image or the start of a video) -> an iterator of finished frames (paper section 3.3, sampling).

Text-to-image is one frame, image-to-video is "the first frame is given", continuation is "these frames are given", and keyframes
show later ones. The codes come from `diffusion/sampler.py:sample_video`, which is the whole method; the streaming tokenizer turns
them into pixels.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.config import PACKAGED, read_config, read_object, read_value
from lumos.diffusion.compute import Compute, prepare_model
from lumos.diffusion.cost import GenerationCost, check_memory, generation_cost
from lumos.diffusion.frame_model import FrameModel, PictureOf, VideoSpec
from lumos.diffusion.sampler import Progress, SamplerConfig, SamplerKind, sample_video
from lumos.model.adapter import merge_adapter
from lumos.model.rope import PLACES
from lumos.model.transformer import Transformer
from lumos.model_folder import FolderConfig, load_model, prompt_reader
from lumos.sequence.layout import SIZE_UNIT, Grid
from lumos.sequence.text import TextTokenizer
from lumos.sequence.token_file import About, Tokens, load_tokens
from lumos.session import Course, Player, Session, Turn
from lumos.tokenizer.compression import check_keyframe, check_sides, latent_frames, pixel_frames
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import find_weights, fingerprint

CONTINUE = 16  # frames added to a given video unless the user says how many
ENDLESS = 10**9  # frames of a session


class Generator:
    """A loaded model: call it for pixels_BCFHW, or `stream` for frames as they are finished."""

    def __init__(
        self,
        config: FolderConfig,
        model: Transformer,
        text: TextTokenizer,
        tokenizer: VideoTokenizer,
        device: torch.device,
        dtype: torch.dtype,
        compute: Compute | None = None,
    ) -> None:
        self.config, self.text, self.device, self.dtype = config, text, device, dtype
        self.prompts = prompt_reader(text, config.video)
        self.compute = compute or Compute(compile=False)
        self.model = model.to(device, dtype).eval()
        self.model.make_tables(device)  # angles stay float32
        self.compiled = prepare_model(self.model, self.compute, device)
        self.tokenizer = tokenizer.to(device).eval()

    @classmethod
    def from_folder(
        cls, weights: str | Path = PACKAGED, device: str | None = None, compute: Compute | None = None, lora: Path | None = None
    ) -> "Generator":
        """Load a model folder, or weights that come with the package by name. `device`: cuda when there is one, else cpu. lora:
        folder of an adapter, merged into the weights; ValueError for the one that a run has merged into them already."""
        where = pick_device(device)
        if lora is not None and Path(lora).resolve() == find_weights(weights, "model").resolve().parent / "lora":
            raise ValueError(f"{weights} holds the adapter {lora} already; leave --lora out, or name the weights before it")
        config, model, text, tokenizer = load_model(weights, where)
        if lora is not None:
            merge_adapter(model, Path(lora))
        # bfloat16 halves the time of matrix products where the hardware has it, and slows them down elsewhere.
        fast = where.type == "cuda" or (where.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
        dtype = torch.bfloat16 if fast else torch.float32
        return cls(config, model, text, tokenizer, where, dtype, compute or Compute())

    def __call__(
        self, prompts: str | Sequence[str], frames: int | None = None, seed: int | Sequence[int] = 0, **settings: Any
    ) -> Tensor:
        """Whole videos, pixels_BCFHW in [-1, 1]: see `stream` for every argument and setting."""
        return torch.cat(list(self.stream(prompts, frames=frames, seed=seed, **settings)), dim=2)

    @torch.inference_mode()
    def stream(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        given: Tensor | None = None,
        sampler: SamplerConfig | SamplerKind | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: Progress | None = None,
        record: list[Tensor] | None = None,
        keyframes: Mapping[int, Tensor] | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """Yield pixels_BCFHW in [-1, 1]: the first frame alone, then those of one latent frame at a time.

        frames: length of the result in frames, 1 + 4k, given ones included (1 = an image); default the trained length.
        seed: one for all prompts, or one each. A prompt and its seed give the same video whatever else is in the batch.
        given: pixels_CFHW of frames to go on from (an image is one frame), shared by all prompts.
        progress: called with (denoising steps done, all of them). Close the iterator early to free the cache.
        record: list to which codes_BHW of every latent frame are appended; pass it to `tokens`.
        keyframes: pixels_CHW that frames 1 to frames - 1 are to show, shared by all prompts; {frames - 1: picture} is the end.
        settings: fields of SamplerConfig to change, such as steps=4, guidance=2.0 or sampler="halton".
        """
        batch = prompts_of(prompts)
        grid = self._grid(height, width)
        codes_BTHW = self._encode(given, grid).expand(len(batch), -1, -1, -1)
        frames = self.config.video.frames if frames is None else read_value(int, frames, "frames")
        spec = self._spec(grid, frames, given=codes_BTHW.shape[1], known=codes_BTHW.shape[1])
        spec = replace(spec, keyframes=self._encode_keyframes(keyframes or {}, spec, frames))
        changed = self._settings(sampler, settings)
        yield from self._make(spec, batch, seeds_of(seed, len(batch)), changed, codes_BTHW, progress, record)

    @torch.inference_mode()
    def branch(
        self,
        tokens: Tokens,
        kept: int,
        prompts: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        frames: int | None = None,
        sampler: SamplerConfig | None = None,
        progress: Progress | None = None,
        record: list[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Like `stream`, but the first `kept` frames (1 + 4k) are those of `tokens`; other prompts or seeds tell another end.

        With the same prompts, seeds and settings the end is the same, too. frames: default the trained length, or 16 more
        than `kept` if that is longer.
        """
        about, (videos, T, rows, columns) = tokens.about, tokens.codes_BTHW.shape
        batch = prompts_of(about.prompts if prompts is None else prompts)
        if videos not in (1, len(batch)):
            raise ValueError(f"prompts must be as many as the {videos} videos to branch from, got {len(batch)}; give one each")
        temporal = self.tokenizer.temporal
        most = pixel_frames(T, temporal)
        if not 1 <= kept <= most or (kept - 1) % temporal:
            raise ValueError(f"frames to keep must be 1 + {temporal}k, at most the {most} that there are, got {kept}; use {most}")
        known = latent_frames(kept, temporal)
        codes_BTHW = tokens.codes_BTHW[:, :known].to(self.device).expand(len(batch), -1, -1, -1)
        frames = max(self.config.video.frames, kept + CONTINUE) if frames is None else frames
        spec = self._spec(self._grid_of(rows, columns), frames, given=min(about.given, known), known=known)
        seeds = list(about.seeds) if seed is None else seeds_of(seed, len(batch))
        seeds = seeds * len(batch) if len(seeds) == 1 else seeds
        yield from self._make(spec, batch, seeds, self._settings(sampler, {}), codes_BTHW, progress, record)

    @torch.inference_mode()
    def session(
        self,
        prompt: str,
        seed: int = 0,
        given: Tensor | None = None,
        sampler: SamplerConfig | SamplerKind | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: Progress | None = None,
        keyframes: Mapping[int, Tensor] | None = None,
        **settings: Any,
    ) -> Session:
        """One video without end, to be steered while it is made; as long as nobody does, it is the one that `stream` makes.

        Arguments are those of `stream`, but that `progress` counts the steps of one latent frame.
        """
        grid = self._grid(height, width)
        codes_BTHW = self._encode(given, grid)
        keys = self._encode_keyframes(keyframes or {}, self._endless(grid, codes_BTHW.shape[1]), ENDLESS)
        kept = tuple((at, tuple(map(tuple, codes_HW.tolist()))) for at, codes_HW in keys.items())
        turn = Turn(codes_BTHW.shape[1], prompt, seed)
        return self._session(Course((turn,), self._settings(sampler, settings), keyframes=kept), codes_BTHW[0], progress)

    def load_session(self, file: str | Path, progress: Progress | None = None) -> Session:
        """Go on from what `Session.save` wrote. ValueError for another file, or one of another tokenizer."""
        tokens = load_tokens(Path(file), self.tokenizer, self.tokenizer.codebook_size)
        if not tokens.about.course:
            raise ValueError(f"{file} must be a session's, got a video of lumos generate; go on from it with branch")
        course, size = read_config(Course, read_object(tokens.about.course, file), file), tokens.codes_BTHW.shape[2:]
        for _, codes_HW in course.keyframes:
            known = all(0 <= code < self.tokenizer.codebook_size for row in codes_HW for code in row)
            if not known or [len(codes_HW), *map(len, codes_HW)] != [size[0], *[size[1]] * size[0]]:
                raise ValueError(f"{file} must hold keyframes of its own size and tokenizer, got others; use it as it was saved")
        if max(course.shown, course.turns[-1].start) > tokens.codes_BTHW.shape[1]:
            raise ValueError(f"{file} must hold the frames that it speaks of, got fewer; use the file as it was saved")
        return self._session(course, tokens.codes_BTHW[0].to(self.device), progress)

    @torch.inference_mode()
    def decode(self, tokens: Tokens) -> Iterator[Tensor]:
        """Pixels of saved tokens, as `stream` yields them."""
        player = Player(self.tokenizer, list(tokens.codes_BTHW.to(self.device).unbind(1)))
        yield from map(player.show, range(len(player.codes)))

    def tokens(self, record: Sequence[Tensor], prompts: Sequence[str], seed: int | Sequence[int], given: int = 0) -> Tokens:
        """What `stream` or `branch` recorded, ready for `save_tokens` and `branch`; `given` latent frames came from outside."""
        seeds = tuple(seeds_of(seed, len(prompts)))
        about = About(tuple(prompts), seeds, self.config.video.fps, given, fingerprint(self.tokenizer))
        return Tokens(torch.stack([codes_BHW.cpu() for codes_BHW in record], dim=1), about)

    def cost(
        self, prompts: int, frames: int, height: int | None = None, width: int | None = None, sampler: SamplerConfig | None = None
    ) -> GenerationCost:
        """Memory beside the weights, and operations, of making so many videos at once. ValueError for impossible sizes."""
        return self._cost(self._spec(self._grid(height, width), frames), 0, prompts, sampler or self.config.sampler)

    def _endless(self, grid: Grid, given: int) -> VideoSpec:
        """Of a video that goes on beyond every position that the model has met."""
        video, temporal = self.config.video, self.tokenizer.temporal
        latent = max(latent_frames(video.frames, temporal), video.latest + 1, given + 1)
        return self._spec(grid, pixel_frames(latent, temporal), given, given)

    def _session(self, course: Course, codes_THW: Tensor, progress: Progress | None) -> Session:
        grid, given = self._grid_of(*codes_THW.shape[1:]), course.turns[0].start
        spec = self._endless(grid, given)
        check_memory(self._cost(spec, given, 1, course.settings).bytes, self.device)
        height, width = grid.rows * grid.spatial, grid.columns * grid.spatial
        read = partial(self.prompts.ids, frames=self.config.video.frames, height=height, width=width)
        return Session(self._frame_model, read, self.tokenizer, spec, course, codes_THW.unbind(0), progress)

    def _frame_model(
        self, spec: VideoSpec, texts: list[list[int]], seeds: list[int], settings: SamplerConfig, picture: PictureOf
    ) -> FrameModel:
        return FrameModel(self.model, self.config.vocabulary, spec, texts, seeds, settings, self.compute, self.compiled, picture)

    def _make(
        self,
        spec: VideoSpec,
        prompts: list[str],
        seeds: list[int],
        settings: SamplerConfig,
        known_BTHW: Tensor,
        progress: Progress | None,
        record: list[Tensor] | None,
    ) -> Iterator[Tensor]:
        grid, known = spec.grid, known_BTHW.shape[1]
        frames = pixel_frames(spec.latent_frames, grid.temporal)
        height, width = grid.rows * grid.spatial, grid.columns * grid.spatial
        texts = [self.prompts.ids(prompt, frames, height, width) for prompt in prompts]
        check_memory(self._cost(spec, known, len(prompts), settings).bytes, self.device)
        # Prompts of equal length lie side by side, so that they share calls of attention.
        order = sorted(range(len(prompts)), key=lambda row: len(texts[row]))
        order_B = torch.tensor(order, device=self.device)
        back_B = order_B.argsort()
        texts, seeds = [texts[row] for row in order], [seeds[row] for row in order]
        made: list[Tensor] = []  # codes_BHW
        end_HW = spec.keyframes.get(frames - 1)
        player = Player(self.tokenizer, made)
        model = self._frame_model(spec, texts, seeds, settings, lambda number: player.picture(number)[order_B])
        for number, codes_BN in enumerate(sample_video(model, settings, known_BTHW[order_B].flatten(2), progress)):
            made.append(codes_BN[back_B].unflatten(1, (grid.rows, grid.columns)))
            if record is not None:
                record.append(made[-1])
            pixels_BCFHW = player.show(number)
            if end_HW is not None and number + 1 == spec.latent_frames:  # the picture itself, which the model but comes near to
                pixels_BCFHW[:, :, -1] = self.tokenizer.decode(end_HW[None, None])[:, :, 0]
            yield pixels_BCFHW

    def _settings(self, sampler: SamplerConfig | SamplerKind | None, changes: dict[str, Any]) -> SamplerConfig:
        """The model's sampler, or a given one, with some settings changed. ValueError for an unknown one or a wrong value."""
        if not isinstance(sampler, SamplerConfig | str | None):
            raise ValueError(f"sampler must be a SamplerConfig or the name of one, got {sampler!r:.60}; give settings by name")
        own = sampler if isinstance(sampler, SamplerConfig) else self.config.sampler
        named = {"sampler": sampler} if isinstance(sampler, str) else {}
        return read_config(SamplerConfig, {**asdict(own), **named, **changes}, "settings of the sampler")

    def _cost(self, spec: VideoSpec, known: int, prompts: int, settings: SamplerConfig) -> GenerationCost:
        codes, item = self.config.vocabulary.choices, self.dtype.itemsize
        return generation_cost(self.model.config, spec, known, self.config.video.slots, codes, prompts, item, settings)

    def _spec(self, grid: Grid, frames: int, given: int = 0, known: int = 0) -> VideoSpec:
        video, temporal = self.config.video, self.tokenizer.temporal
        latent, known_frames = latent_frames(frames, temporal), pixel_frames(known, temporal)
        if known and latent <= known:
            raise ValueError(
                f"frames must be more than the {known_frames} given ones, got {frames}; use {known_frames + CONTINUE}"
            )
        return VideoSpec(grid, latent, min(frames, video.frames), video.fps, video.window, video.latest, given)

    def _grid(self, height: int | None, width: int | None) -> Grid:
        video, most = self.config.video, SIZE_UNIT * (self.config.vocabulary.numbers - 1)  # sides are told in numbers
        height = video.height if height is None else read_value(int, height, "height")
        width = video.width if width is None else read_value(int, width, "width")
        check_sides(height, width, math.lcm(SIZE_UNIT, self.tokenizer.spatial))
        if max(height, width) > most:
            raise ValueError(f"height and width may be at most {most} with these weights, got {height}x{width}; use less")
        return self._grid_of(height // self.tokenizer.spatial, width // self.tokenizer.spatial)

    def _grid_of(self, rows: int, columns: int) -> Grid:
        model, tokenizer = self.config.model, self.tokenizer
        return Grid(rows, columns, tokenizer.temporal, tokenizer.spatial, PLACES[model.rope], model.causal)

    def _encode(self, given: Tensor | None, grid: Grid) -> Tensor:
        if given is None:
            return torch.zeros(1, 0, grid.rows, grid.columns, dtype=torch.int64, device=self.device)
        height, width = grid.rows * grid.spatial, grid.columns * grid.spatial
        if not isinstance(given, Tensor):
            raise ValueError(f"given frames and keyframes must be tensors, got {type(given).__name__}; give their pixels_CFHW")
        if given.ndim == 5 and len(given) == 1:  # as a Generator gives one video
            given = given[0]
        if given.ndim != 4 or (given.shape[0], *given.shape[2:]) != (3, height, width):
            raise ValueError(
                f"given frames and keyframes must have shape [3, frames, {height}, {width}], got {list(given.shape)}; resize them"
            )
        return self.tokenizer.encode(given[None].to(self.device))

    def _encode_keyframes(self, keyframes: Mapping[int, Tensor], spec: VideoSpec, frames: int) -> dict[int, Tensor]:
        """Codes of every picture alone, as of a video's first frame."""
        grid, temporal = spec.grid, spec.grid.temporal
        if not isinstance(keyframes, Mapping):
            raise ValueError(f"keyframes must be a dict of frame number to picture, got {type(keyframes).__name__}")
        for at in keyframes:
            check_keyframe(at, pixel_frames(spec.given, temporal), frames)
        return {at: self._encode(one[:, None] if isinstance(one, Tensor) else one, grid)[0, 0] for at, one in keyframes.items()}


def prompts_of(prompts: str | Sequence[str]) -> list[str]:
    """One prompt or several, at least one."""
    batch = [prompts] if isinstance(prompts, str) else list(prompts or ())
    if not batch or not all(isinstance(prompt, str) for prompt in batch):
        raise ValueError(f"prompts must be a sentence or a list of some, got {prompts!r:.60}; give at least one")
    return batch


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """A seed for each prompt: one for all, or as many as there are."""
    try:
        seeds = [index(each) for each in (seed if isinstance(seed, Iterable) else [seed] * prompts)]
    except TypeError:
        raise ValueError(f"a seed must be a whole number, got {seed!r:.60}") from None
    if len(seeds) != prompts:
        raise ValueError(f"seeds must be one for all or one for each of the {prompts} prompts, got {len(seeds)}; give as many")
    return seeds


def pick_device(name: str | None) -> torch.device:
    """The device of a name, or the usual one for None. ValueError for one that is not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}; leave it out to use what there is")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} needs a CUDA GPU, {torch.cuda.device_count()} found; use cpu")
    return device

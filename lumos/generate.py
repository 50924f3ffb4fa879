"""Prompts (and perhaps an image or a video) -> an iterator of finished frames (paper section 3.3, sampling).

`Generator.stream` is the whole method: prefix once, then for each latent frame `steps` denoising passes over the frame's own
slots, one more pass that commits it partly masked as history, and its pixels out of the streaming tokenizer. Text-to-image is
one frame, image-to-video is "the first frame is given", continuation is "these frames are given". The batch itself, with its
cache and random streams, is `diffusion/job.py`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.engine import Compute, prepare
from lumos.diffusion.estimate import Estimate, check_memory, estimate
from lumos.diffusion.job import Job, Plan, Progress
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.adapter import merge_adapter
from lumos.model.rope import PLACES
from lumos.model.transformer import Transformer
from lumos.model_folder import FolderConfig, load_model
from lumos.sequence.layout import Grid, clock
from lumos.sequence.prompt_template import said_frames
from lumos.sequence.text import TextTokenizer
from lumos.sequence.token_file import About, Tokens
from lumos.tokenizer.model import VideoTokenizer
from lumos.weights import fingerprint

CONTINUE = 16  # frames added to a given video unless the user says how many


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
        self.compute = compute or Compute(compile=False)
        self.model = model.to(device, dtype).eval()
        self.model.make_tables(device)  # angles stay float32
        self.compiled = prepare(self.model, self.compute, device)
        self.tokenizer = tokenizer.to(device).eval()

    @classmethod
    def from_folder(
        cls,
        name_or_folder: str | Path = "tiny",
        device: str | None = None,
        compute: Compute | None = None,
        lora: Path | None = None,
    ) -> "Generator":
        """Load a model folder, or weights that come with the package by name. `device`: cuda when there is one, else cpu.

        lora: folder of an adapter, merged into the weights.
        """
        where = pick_device(device)
        config, model, text, tokenizer = load_model(name_or_folder, where)
        if lora is not None:
            merge_adapter(model, lora)
        # bfloat16 halves the time of matrix products where the hardware has it, and slows them down elsewhere.
        fast = where.type == "cuda" or (where.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
        dtype = torch.bfloat16 if fast else torch.float32
        return cls(config, model, text, tokenizer, where, dtype, compute or Compute())

    def __call__(
        self, prompts: str | Sequence[str], frames: int | None = None, seed: int | Sequence[int] = 0, **settings: Any
    ) -> Tensor:
        """Whole videos, pixels_BCFHW in [-1, 1]: see `stream` for every setting."""
        return torch.cat(list(self.stream(prompts, frames=frames, seed=seed, **settings)), dim=2)

    @torch.inference_mode()
    def stream(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        given: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: Progress | None = None,
        record: list[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield pixels_BCFHW in [-1, 1]: the first frame alone, then 4 at a time. Closing it gives its memory back.

        frames: length of the result in frames, 1 + 4k, given ones included (1 = an image); default the trained length.
        seed: one for all prompts, or one each. A prompt and its seed give the same video whatever else is in the batch.
        given: pixels_CFHW of frames to go on from (an image is one frame), shared by all prompts.
        progress: called with (denoising passes done, all of them).
        record: a list that codes_BHW of each latent frame
        are added to, for `tokens`.
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        video, settings = self.config.video, sampler or self.config.sampler
        frames = video.frames if frames is None else frames
        grid = self._grid(height or video.height, width or video.width)
        self._check_frames(frames, 0 if given is None else given.shape[1])
        codes_BTHW = self._encode(given, len(batch), grid)
        plan = self._plan(grid, frames, given=codes_BTHW.shape[1], at_hand=codes_BTHW.shape[1])
        yield from self._make(plan, batch, seeds_of(seed, len(batch)), settings, codes_BTHW, progress, record)

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
        about, (_, T, rows, columns) = tokens.about, tokens.codes_BTHW.shape
        batch = list(about.prompts) if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
        codes_BTHW = tokens.codes_BTHW.to(self.device)
        if codes_BTHW.shape[0] == 1:
            codes_BTHW = codes_BTHW.expand(len(batch), -1, -1, -1)
        if len(batch) != codes_BTHW.shape[0]:
            raise ValueError(
                f"prompts must be as many as the {len(codes_BTHW)} videos to branch from, got {len(batch)}; give one each"
            )
        if kept % 4 != 1 or not 1 <= kept <= 4 * T - 3:
            raise ValueError(
                f"frames to keep must be 1 + 4k, at most the {4 * T - 3} that there are, got {kept}; use {4 * T - 3}"
            )
        frames = max(self.config.video.frames, kept + CONTINUE) if frames is None else frames
        self._check_frames(frames, kept)
        hand = 1 + kept // 4
        seeds = list(about.seeds) if seed is None else seeds_of(seed, len(batch))
        plan = self._plan(self._of_codes(rows, columns), frames, given=min(about.given, hand), at_hand=hand)
        settings = sampler or self.config.sampler
        seeds = seeds * len(batch) if len(seeds) == 1 else seeds
        yield from self._make(plan, batch, seeds, settings, codes_BTHW[:, :hand], progress, record)

    @torch.inference_mode()
    def decode(self, tokens: Tokens) -> Iterator[Tensor]:
        """Pixels of saved tokens, as `stream` yields them."""
        decoder = self.tokenizer.start_stream()
        for codes_BHW in tokens.codes_BTHW.to(self.device).unbind(1):
            yield self.tokenizer.decode_next(codes_BHW, decoder).float().clamp(-1, 1)

    def tokens(self, record: Sequence[Tensor], prompts: Sequence[str], seed: int | Sequence[int], given: int = 0) -> Tokens:
        """What `stream` or `branch` recorded, ready for `save_tokens` and `branch`; `given` frames of it were not made."""
        about = About(
            tuple(prompts),
            tuple(seeds_of(seed, len(prompts))),
            self.config.video.fps,
            -(-given // 4),
            fingerprint(self.tokenizer),
        )
        return Tokens(torch.stack([codes_BHW.cpu() for codes_BHW in record], dim=1), about)

    def estimate(
        self,
        prompts: int,
        frames: int,
        height: int,
        width: int,
        sampler: SamplerConfig | None = None,
        given: int = 0,
    ) -> Estimate:
        """Memory beside the weights, and operations, of making so many videos at once, of which the first `given` frames are at
        hand. ValueError for impossible sizes."""
        self._check_frames(frames, given)
        at_hand = -(-given // 4)
        plan = self._plan(self._grid(height, width), frames, given=at_hand, at_hand=at_hand)
        return self._estimate(plan, prompts, sampler or self.config.sampler)

    def prompt_ids(self, prompt: str, frames: int, height: int, width: int) -> list[int]:
        """Text ids of one prompt inside the model's template; too long a prompt is a ValueError."""
        video = self.config.video
        ids = self.text.encode(prompt)
        if video.template != "{caption}":
            seconds, fps = clock(min(frames, video.frames), video.fps)
            said = said_frames(1 + (frames - 1) // 4, seconds, fps)
            ids = self.text.encode(video.template.format(width=width, height=height, frames=said, fps=fps, caption=prompt))
        if len(ids) > video.slots - 2:
            raise ValueError(f"a prompt may have at most {video.slots - 2} text ids for this model, got {len(ids)}; shorten it")
        return ids

    def _make(
        self,
        plan: Plan,
        prompts: list[str],
        seeds: list[int],
        settings: SamplerConfig,
        codes_BTHW: Tensor,
        progress: Progress | None,
        record: list[Tensor] | None,
    ) -> Iterator[Tensor]:
        grid = plan.grid
        texts = [self.prompt_ids(prompt, plan.frames, grid.rows * 8, grid.columns * 8) for prompt in prompts]
        check_memory(self._estimate(plan, len(prompts), settings).bytes, self.device)
        job = Job(self.model, self.config.vocabulary, plan, texts, seeds, settings, self.compute, compiled=self.compiled)
        decoder = self.tokenizer.start_stream()
        for number in range(plan.latent_frames):
            codes_BHW = codes_BTHW[:, number] if number < plan.at_hand else job.sample(progress)
            if record is not None:
                record.append(codes_BHW)
            yield self.tokenizer.decode_next(codes_BHW, decoder).float().clamp(-1, 1)
            if number + 1 < plan.latent_frames:  # once it is shown; nothing will see the last frame
                job.commit(codes_BHW)

    def _estimate(self, plan: Plan, prompts: int, settings: SamplerConfig) -> Estimate:
        codes, item = self.config.vocabulary.codes, self.dtype.itemsize
        return estimate(self.model.config, plan, self.config.video.slots, codes, prompts, item, settings)

    def _plan(self, grid: Grid, frames: int, given: int = 0, at_hand: int = 0) -> Plan:
        video = self.config.video
        return Plan(grid, frames, video.fps, video.window, video.latest, video.frames, given, at_hand)

    def _grid(self, height: int, width: int) -> Grid:
        for name, side in (("height", height), ("width", width)):
            if side < 32 or side % 32:
                raise ValueError(
                    f"{name} must be a multiple of 32, at least 32, got {side}; use {max(32, round(side / 32) * 32)}"
                )
        return self._of_codes(height // 8, width // 8)

    def _of_codes(self, rows: int, columns: int) -> Grid:
        model = self.config.model
        return Grid(rows, columns, places=PLACES[model.rope], causal=model.causal)

    def _check_frames(self, frames: int, given: int) -> None:
        if frames < 1 or frames % 4 != 1:
            raise ValueError(f"frames must be 1 + 4k, got {frames}; use {max(1, math.ceil((frames - 1) / 4) * 4 + 1)}")
        if given and (given % 4 != 1 or given >= frames):
            raise ValueError(f"frames must be more than the {given} given ones (1 + 4k of them), got {frames}; use {given + 16}")

    def _encode(self, given: Tensor | None, rows: int, grid: Grid) -> Tensor:
        if given is None:
            return torch.zeros(rows, 0, grid.rows, grid.columns, dtype=torch.int64, device=self.device)
        codes_BTHW = self.tokenizer.encode(given[None].to(self.device))
        if codes_BTHW.shape[2:] != (grid.rows, grid.columns):
            raise ValueError(
                f"given frames must be {grid.columns * 8}x{grid.rows * 8}, got {given.shape[3]}x{given.shape[2]}; resize them"
            )
        return codes_BTHW.expand(rows, -1, -1, -1)


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """A seed for each prompt: one for all, or as many as there are."""
    seeds = [seed] * prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts:
        raise ValueError(f"seeds must be one for all or one for each of the {prompts} prompts, got {len(seeds)}; give as many")
    return seeds


def pick_device(name: str | None) -> torch.device:
    """The device of a name, or the usual one for None. ValueError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}; leave it out to use what there is") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} needs a CUDA GPU, {torch.cuda.device_count()} found; use cpu")
    return device

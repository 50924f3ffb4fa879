"""Prompts (and perhaps an image or a video) -> an iterator of finished frames (paper section 3.3, sampling).

`Generator.stream` is the whole method: prefix once, then for each latent frame `steps` denoising passes over the frame's own
slots, one more pass that commits it partly masked as history, and its pixels out of the streaming tokenizer. Text-to-image is
one frame, image-to-video is "the first frame is given", continuation is "these frames are given".
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.masking import history_mask, released_history_mask
from lumos.diffusion.sampler import MASKED, SamplerConfig, guide, sample_frame
from lumos.model.attention import attend_to_all, dense
from lumos.model.cache import Cache
from lumos.model.rope import rotation
from lumos.model.transformer import Transformer
from lumos.model_folder import FolderConfig, load_model
from lumos.sequence.layout import HEADER, Grid, clock, content_ids, content_of, frame_ids, frame_positions, pack, text_batch
from lumos.sequence.published import said_frames
from lumos.sequence.text import TextTokenizer
from lumos.tokenizer.cosmos import CosmosTokenizer
from lumos.tokenizer.model import VideoTokenizer
from lumos.video import Clip, check_output, read_image, read_video, write_video

Progress = Callable[[int, int], None]
CONTINUE = 16  # frames added to a given video unless the user says how many
LONGEST_START = 257  # frames of a given video that are read


class Generator:
    """A loaded model: call it for pixels_BCFHW, or `stream` for frames as they are finished."""

    def __init__(
        self,
        config: FolderConfig,
        model: Transformer,
        text: TextTokenizer,
        tokenizer: VideoTokenizer | CosmosTokenizer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.text, self.device, self.dtype = config, text, device, dtype
        self.model = model.to(device, dtype).eval()
        self.model.make_tables(device)  # angles stay float32
        self.tokenizer = tokenizer.to(device).eval()

    @classmethod
    def from_folder(cls, name_or_folder: str | Path = "tiny", device: str | None = None) -> "Generator":
        """Load a model folder, or weights that come with the package by name. `device`: cuda when there is one, else cpu."""
        where = _device(device)
        config, model, text, tokenizer = load_model(name_or_folder)
        # bfloat16 halves the time of matrix products where the hardware has it, and slows them down elsewhere.
        fast = where.type == "cuda" or (where.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
        dtype = torch.bfloat16 if fast else torch.float32
        return cls(config, model, text, tokenizer, where, dtype)

    def __call__(self, prompts: str | Sequence[str], frames: int | None = None, seed: int = 0, **settings: Any) -> Tensor:
        """Whole videos, pixels_BCFHW in [-1, 1]: see `stream` for every setting."""
        return torch.cat(list(self.stream(prompts, frames=frames, seed=seed, **settings)), dim=2)

    @torch.inference_mode()
    def stream(
        self,
        prompts: str | Sequence[str],
        frames: int | None = None,
        seed: int = 0,
        given: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Yield pixels_BCFHW in [-1, 1]: the first frame alone, then 4 at a time.

        frames: length of the result in frames, 1 + 4k, given ones included (1 = an image); default the trained length.
        given: pixels_CFHW of frames to go on from (an image is one frame), shared by all prompts.
        progress: called with (denoising passes done, all of them).
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        video, settings = self.config.video, sampler or self.config.sampler
        frames = video.frames if frames is None else frames
        grid = self._grid(height or video.height, width or video.width)
        latent_frames = self._check_frames(frames, 0 if given is None else given.shape[1])
        given_codes = self._encode(given, len(batch), grid)
        job = Job(
            self,
            batch,
            grid,
            settings,
            frames,
            given_codes.shape[1],
            torch.Generator(self.device).manual_seed(seed),
        )
        decoder = self.tokenizer.start_stream()
        passes = (latent_frames - given_codes.shape[1]) * settings.steps
        for number in range(latent_frames):
            if number < given_codes.shape[1]:
                codes_BHW = given_codes[:, number]
            else:
                made = number - given_codes.shape[1]
                codes_BHW = job.sample(made, made * settings.steps, passes, progress)
            if number + 1 < latent_frames:  # nothing will see the last frame
                job.commit(codes_BHW, number, is_given=number < given_codes.shape[1])
            yield self.tokenizer.decode_next(codes_BHW, decoder).float().clamp(-1, 1)

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

    def _grid(self, height: int, width: int) -> Grid:
        for name, side in (("height", height), ("width", width)):
            if side < 32 or side % 32:
                raise ValueError(
                    f"{name} must be a multiple of 32, at least 32, got {side}; use {max(32, round(side / 32) * 32)}"
                )
        return Grid(height // 8, width // 8)

    def _check_frames(self, frames: int, given: int) -> int:
        if frames < 1 or frames % 4 != 1:
            raise ValueError(f"frames must be 1 + 4k, got {frames}; use {max(1, math.ceil((frames - 1) / 4) * 4 + 1)}")
        if given and (given % 4 != 1 or given >= frames):
            raise ValueError(f"frames must be more than the {given} given ones (1 + 4k of them), got {frames}; use {given + 16}")
        return 1 + (frames - 1) // 4

    def _encode(self, given: Tensor | None, rows: int, grid: Grid) -> Tensor:
        if given is None:
            return torch.zeros(rows, 0, grid.rows, grid.columns, dtype=torch.int64, device=self.device)
        codes_BTHW = self.tokenizer.encode(given[None].to(self.device))
        if codes_BTHW.shape[2:] != (grid.rows, grid.columns):
            raise ValueError(
                f"given frames must be {grid.columns * 8}x{grid.rows * 8}, got {given.shape[3]}x{given.shape[2]}; resize them"
            )
        return codes_BTHW.expand(rows, -1, -1, -1)


class Job:
    """One batch in the making: its rows (conditional, then unconditional for guidance), cache and place in time."""

    def __init__(
        self,
        owner: Generator,
        prompts: list[str],
        grid: Grid,
        settings: SamplerConfig,
        frames: int,
        given: int,
        generator: torch.Generator,
    ) -> None:
        self.model, self.vocabulary, self.video = owner.model, owner.config.vocabulary, owner.config.video
        self.grid, self.settings, self.generator, self.device = grid, settings, generator, owner.device
        self.prompts, self.given = len(prompts), given
        texts = [owner.prompt_ids(prompt, frames, grid.rows * 8, grid.columns * 8) for prompt in prompts]
        self.guided = settings.guidance != 1
        unconditional: list[list[int]] = [[] for _ in prompts] if self.guided else []
        text_BS, length_B = text_batch(self.vocabulary, [*texts, *unconditional], self.video.slots)
        self.length_B = length_B.to(self.device)
        self.cache = self._prefill(text_BS.to(self.device), frames, owner.dtype)
        self.prefix = self.cache.length
        self.number = 0  # the next latent frame's number in the video

    def sample(self, made: int, done: int, passes: int, progress: Progress | None) -> Tensor:
        """Codes of the next latent frame, [prompts, H, W]; `made` frames were generated before it, by `done` of `passes`."""
        position_BN3 = self._positions(min(self.number, self.video.latest))

        def predict(codes_BHW: Tensor) -> Tensor:
            nonlocal done
            content_BHW = self._content(codes_BHW)
            hidden_BHWD = self._forward(content_BHW, position_BN3)[:, :, :-1]
            logits = self.model.logits(hidden_BHWD.flatten(1, 2), self.vocabulary.first_code, self.vocabulary.codes)
            done += 1
            if progress:
                progress(done, passes)
            if not self.guided:
                return logits
            conditional, unconditional = logits.chunk(2)
            return guide(conditional, unconditional, self.settings.guidance)

        shape = torch.empty(self.prompts, self.grid.rows, self.grid.columns, dtype=torch.int64, device=self.device)
        return sample_frame(predict, shape, self.settings, self.generator, made)

    def commit(self, codes_BHW: Tensor, number: int, is_given: bool) -> None:
        """Make a finished frame history: one pass with part of its content masked writes its keys and values."""
        self.number = number + 1
        if is_given and number < self.given - (self.video.window - 1):
            return  # given frames before the window are never seen
        content_BHW = self._content(codes_BHW)
        rows, columns = content_BHW.shape[1:]
        released = self.settings.sampler == "released"
        if released and is_given:
            hidden = None  # released code: given frames are cached unmasked
        elif released:
            hidden = released_history_mask(self.prompts, rows, columns, self.settings.history, self.device)
        else:
            hidden = history_mask(self.prompts, rows, columns, self.settings.history, self.generator, self.device)
        if hidden is not None:
            content_BHW = torch.where(hidden, self.vocabulary.mask, content_BHW)
        # Given frames get the places in time that they have when the first new frame is made.
        shown = min(self.given, self.video.latest) - (self.given - number) if is_given else min(number, self.video.latest)
        self._forward(content_BHW, self._positions(shown))
        self.cache.commit(self.grid.frame_length)
        if self.cache.length == self.prefix + self.video.window * self.grid.frame_length:
            self.cache.forget(self.prefix, self.grid.frame_length)
        if not is_given and number >= self.video.latest:
            self._turn_back()

    def _positions(self, latent: int) -> Tensor:
        return frame_positions(self.grid, self.length_B, latent, 1)

    def _turn_back(self) -> None:
        """Beyond the last trained position time stands still: history moves one latent frame into the past instead.

        Rotary angles add up, so cached keys are turned by minus one frame: 4 in time for content, a frame's ids for structure.
        """
        zero = self.length_B.new_zeros(1)
        back_1N3 = frame_positions(self.grid, zero, 0, 1) - frame_positions(self.grid, zero, 1, 1)
        frames = (self.cache.length - self.prefix) // self.grid.frame_length
        turn = rotation(back_1N3.repeat(1, frames, 1), self.model.axis_K, self.model.inverse_frequency_K)
        self.cache.turn(self.prefix, turn)

    def _prefill(self, text_BS: Tensor, frames: int, dtype: torch.dtype) -> Cache:
        config = self.model.config
        seconds, fps = clock(min(frames, self.video.frames), self.video.fps)
        nothing = text_BS.new_zeros(text_BS.shape[0], 0, self.grid.rows, self.grid.columns + 1)
        batch = pack(self.vocabulary, self.grid, text_BS, self.length_B, nothing, seconds, fps)
        length = batch.ids_BL.shape[1]
        capacity = length + min(self.video.window, 1 + (frames - 1) // 4) * self.grid.frame_length
        cache = Cache(config.layers, text_BS.shape[0], config.kv_heads, capacity, config.head_width, self.device, dtype)
        cache.hide(torch.arange(self.video.slots, device=self.device) < self.video.slots - self.length_B[:, None])
        self.model(batch.ids_BL, batch.position_BL3, dense(batch.block_BL, batch.block_BL), cache)
        cache.commit(length)
        return cache

    def _content(self, codes_BHW: Tensor) -> Tensor:
        content_BHW = content_ids(self.vocabulary, codes_BHW)
        return content_BHW.masked_fill(content_BHW == self.vocabulary.first_code + MASKED, self.vocabulary.mask)

    def _forward(self, content_BHW: Tensor, position_BN3: Tensor) -> Tensor:
        """One pass over a frame of every row (both branches of guidance see the same codes): hidden states of its content."""
        ids_BN = frame_ids(self.vocabulary, self.grid, content_BHW[:, None])[:, 0]
        ids_BN = ids_BN.repeat(2, 1) if self.guided else ids_BN
        visible = self.cache.visible_BS[:, : self.cache.length + ids_BN.shape[1]] if self.cache.padded else None
        hidden = self.model(ids_BN, position_BN3, attend_to_all(visible), self.cache)
        return content_of(self.grid, hidden, -HEADER, 1)[:, 0]


@dataclass(frozen=True)
class Request:
    """What `lumos generate` was asked for. `frames` None = as trained (1 for .png; 16 more than a given video)."""

    prompts: tuple[str, ...]
    out: Path
    weights: str = "tiny"
    image: Path | None = None
    video: Path | None = None
    frames: int | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    device: str | None = None
    overwrite: bool = False


def generate_to_files(
    request: Request, settings: Mapping[str, float | int | str], progress: Progress | None = None
) -> dict[str, Any]:
    """Make every prompt's file and tell what was made. `settings` replace fields of the model's sampler.

    Everything that can be wrong with the request is found before any generating; a failed one leaves no file.
    """
    if request.image and request.video:
        raise ValueError("give either an image or a video to start from, got both; leave one out")
    files = output_files(request.out, len(request.prompts))
    for file in files:
        check_output(file, request.overwrite)
    begin = time.monotonic()
    generator = Generator.from_folder(request.weights, request.device)
    video = generator.config.video
    sampler = replace(generator.config.sampler, **settings)  # type: ignore[arg-type]
    height, width = request.height or video.height, request.width or video.width
    given = _given(request, video.fps, height, width)
    is_image = request.out.suffix.lower() == ".png" and not given
    usual = 1 if is_image else _count(given) + CONTINUE if request.video else video.frames
    frames = usual if request.frames is None else request.frames
    parts = generator.stream(
        request.prompts,
        frames,
        request.seed,
        given=given.pixels_CFHW if given else None,
        sampler=sampler,
        height=height,
        width=width,
        progress=progress,
    )
    pixels_BCFHW = torch.cat([part.cpu() for part in parts], dim=2)
    for file, pixels_CFHW in zip(files, pixels_BCFHW, strict=True):
        write_video(file, pixels_CFHW, request.fps or video.fps, overwrite=request.overwrite)
    return {
        "files": [str(file) for file in files],
        "prompts": list(request.prompts),
        "frames": frames,
        "fps": request.fps or video.fps,
        "seed": request.seed,
        "sampler": asdict(sampler),
        "weights": request.weights,
        "given": given.note if given else None,
        "seconds": round(time.monotonic() - begin, 2),
    }


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}; leave it out to use what there is") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} needs a CUDA GPU, {torch.cuda.device_count()} found; use cpu")
    return device


def output_files(out: Path, count: int) -> list[Path]:
    """`out` itself for one prompt; numbered ones beside it for several (red.mp4 -> red_1.mp4, red_2.mp4, ...)."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{number:0{len(str(count))}}{out.suffix}") for number in range(1, count + 1)]


def _given(request: Request, fps: float, height: int, width: int) -> Clip | None:
    if request.image:
        return read_image(request.image, height, width)
    if request.video:
        clip = read_video(request.video, fps, height, width, max_frames=LONGEST_START)
        keep = (_count(clip) - 1) // 4 * 4 + 1
        dropped = _count(clip) - keep
        note = clip.note + (f"; last {dropped} frames left out, as frames come in 1 + 4k" if dropped else "")
        return Clip(clip.pixels_CFHW[:, :keep], note)
    return None


def _count(clip: Clip | None) -> int:
    return clip.pixels_CFHW.shape[1] if clip else 0

"""Prompts (and perhaps an image or a video) -> an iterator of finished frames (paper section 3.3, sampling).

`Generator.stream` is the whole method: prefix once, then for each latent frame `steps` denoising passes over the frame's own
slots, one more pass that commits it partly masked as history, and its pixels out of the streaming tokenizer. Text-to-image is
one frame, image-to-video is "the first frame is given", continuation is "these frames are given".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.masking import history_mask, released_history_mask
from lumos.diffusion.sampler import MASKED, SamplerConfig, guide, sample_frame
from lumos.model.attention import attend_to_all, dense
from lumos.model.cache import Cache
from lumos.model.rope import rotation
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.layout import HEADER, Grid, clock, content_ids, content_of, frame_ids, frame_positions, pack, text_batch
from lumos.sequence.text import TextTokenizer
from lumos.sequence.vocabulary import Vocabulary
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer, save_tokenizer
from lumos.weights import check_names, find_weights, load_folder, read_config, save_folder

TEXT_FILE = "text_tokenizer.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VideoConfig:
    """What the model was trained on: pixels, frames and their rate; `slots`, ids kept for a prompt with its begin and separator;
    `window`, latent frames that may see each other; `latest`, the last latent frame whose position it has met."""

    height: int
    width: int
    frames: int
    fps: int
    slots: int
    window: int
    latest: int
    template: str = "{caption}"

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.latest + 1:
            raise ValueError(f"window must be 1 to latest + 1 = {self.latest + 1} latent frames, got {self.window}; change one")


@dataclass(frozen=True)
class FolderConfig:
    """Everything in a model folder's config.json."""

    model: ModelConfig
    vocabulary: Vocabulary
    video: VideoConfig
    sampler: SamplerConfig


def save_model(folder: Path, config: FolderConfig, model_tensors: dict[str, Tensor], text: TextTokenizer, tokenizer: VideoTokenizer) -> None:
    """Write a whole model folder: decoder (bf16), text vocabulary and visual tokenizer. Replaces an existing one at once."""
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model_tensors.items()}
    document = {"kind": "model", "format": 1, "config": asdict(config)}
    save_folder(folder, document, tensors, {TEXT_FILE: text.tokenizer.to_str().encode()})
    save_tokenizer(folder / "tokenizer", tokenizer, dtype=torch.bfloat16)


class Generator:
    """A loaded model: call it for pixels_BCFHW, or `stream` for frames as they are finished."""

    def __init__(
        self, config: FolderConfig, model: Transformer, text: TextTokenizer, tokenizer: VideoTokenizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.text, self.device, self.dtype = config, text, device, dtype
        self.model = model.to(device, dtype).eval()
        self.model.make_tables(device)  # angles stay float32
        self.tokenizer = tokenizer.to(device).eval()

    @classmethod
    def from_folder(cls, name_or_folder: str | Path = "tiny", device: str | None = None) -> "Generator":
        """Load a model folder, or weights that come with the package by name. `device`: cuda when there is one, else cpu."""
        folder = find_weights(name_or_folder, "model")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        document, tensors = load_folder(folder, "model")
        config = read_config(FolderConfig, document["config"], str(folder / "config.json"))
        with torch.device("meta"):
            model = Transformer(config.model)
        check_names(tensors, model.state_dict(), str(folder))
        model = model.to_empty(device="cpu")
        model.make_tables(torch.device("cpu"))
        model.load_state_dict(tensors)
        text, tokenizer = TextTokenizer.from_file(folder / TEXT_FILE), load_tokenizer(folder / "tokenizer")
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
        job = Job(self, batch, grid, settings, clock(frames, video.fps), given_codes.shape[1], torch.Generator(self.device).manual_seed(seed))
        decoder = self.tokenizer.start_stream()
        passes = (latent_frames - given_codes.shape[1]) * settings.steps
        for number in range(latent_frames):
            if number < given_codes.shape[1]:
                codes_BHW = given_codes[:, number]
            else:
                made = number - given_codes.shape[1]
                codes_BHW = job.sample(made, (lambda step, made=made: progress(made * settings.steps + step, passes)) if progress else None)
            if number + 1 < latent_frames:  # nothing will see the last frame
                job.commit(codes_BHW, number, is_given=number < given_codes.shape[1])
            yield self.tokenizer.decode_next(codes_BHW, decoder).float().clamp(-1, 1)

    def prompt_ids(self, prompt: str, frames: int, height: int, width: int) -> list[int]:
        """Text ids of one prompt inside the model's template; too long a prompt is a ValueError."""
        video = self.config.video
        ids = self.text.encode(prompt)
        if video.template != "{caption}":
            fps = 1 if frames == 1 else video.fps
            ids = self.text.encode(video.template.format(width=width, height=height, frames=frames, fps=fps, caption=prompt))
        if len(ids) > video.slots - 2:
            raise ValueError(f"a prompt may have at most {video.slots - 2} text ids for this model, got {len(ids)}; shorten it")
        return ids

    def _grid(self, height: int, width: int) -> Grid:
        for name, side in (("height", height), ("width", width)):
            if side < 32 or side % 32:
                raise ValueError(f"{name} must be a multiple of 32, at least 32, got {side}; use {max(32, round(side / 32) * 32)}")
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
            raise ValueError(f"given frames must be {grid.columns * 8}x{grid.rows * 8}, got {given.shape[3]}x{given.shape[2]}; resize them")
        return codes_BTHW.expand(rows, -1, -1, -1)


class Job:
    """One batch in the making: its rows (conditional, then unconditional for guidance), cache and place in time."""

    def __init__(
        self, owner: Generator, prompts: list[str], grid: Grid, settings: SamplerConfig, time: tuple[int, int], given: int, generator: torch.Generator
    ) -> None:
        self.model, self.vocabulary, self.video = owner.model, owner.config.vocabulary, owner.config.video
        self.grid, self.settings, self.generator, self.device = grid, settings, generator, owner.device
        self.prompts, self.given = len(prompts), given
        frames = 1 if time == (1, 1) else self.video.frames
        texts = [owner.prompt_ids(prompt, frames, grid.rows * 8, grid.columns * 8) for prompt in prompts]
        self.guided = settings.guidance != 1
        rows = texts + [[] for _ in prompts] * self.guided
        text_BS, length_B = text_batch(self.vocabulary, rows, self.video.slots)
        self.length_B = length_B.to(self.device)
        self.cache = self._prefill(text_BS.to(self.device), time, owner.dtype)
        self.prefix = self.cache.length
        self.number = 0  # the next latent frame's number in the video

    def sample(self, made: int, progress: Callable[[int], None] | None) -> Tensor:
        """Codes of the next latent frame, [prompts, H, W]; `made` frames were generated before it."""
        position_BN3 = self._positions(min(self.number, self.video.latest))
        done = 0

        def predict(codes_BHW: Tensor) -> Tensor:
            nonlocal done
            content_BHW = self._content(codes_BHW)
            hidden_BHWD = self._forward(content_BHW, position_BN3)[:, :, :-1]
            logits = self.model.logits(hidden_BHWD.flatten(1, 2), self.vocabulary.first_code, self.vocabulary.codes)
            done += 1
            if progress:
                progress(done)
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
        if self.cache.length == self.cache.capacity:
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

    def _prefill(self, text_BS: Tensor, time: tuple[int, int], dtype: torch.dtype) -> Cache:
        config, (seconds, fps) = self.model.config, time
        nothing = text_BS.new_zeros(text_BS.shape[0], 0, self.grid.rows, self.grid.columns + 1)
        batch = pack(self.vocabulary, self.grid, text_BS, self.length_B, nothing, seconds, fps)
        length = batch.ids_BL.shape[1]
        capacity = length + self.video.window * self.grid.frame_length
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

"""The decoder as Algorithm 2 needs it: `predict` draws codes of the frame in the making, `commit` makes a frame history.

In: text ids of every prompt, a seed each. A batch has one row per prompt and, with guidance, one more per prompt behind them: the
unconditional branch, with the same codes behind an empty prompt, in the same pass:

    rows of a pass:   prompt 1 | prompt 2 | ... | empty prompt, codes of 1 | empty prompt, codes of 2 | ...

Every row's random numbers follow from its seed, its prompt and the frame's number alone, so a video is the same in any batch.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from lumos.diffusion.compute import LONG_PASS, Compute, Replay, pass_operations
from lumos.diffusion.draw import Guess, draw_whole_codes
from lumos.diffusion.masking import history_mask, released_history_mask
from lumos.diffusion.sampler import MASKED, Others, SamplerConfig, guidance_strengths
from lumos.model.attention import AttendOf, attend_to_all, attend_to_earlier, by_rows, fastest
from lumos.model.cache import Cache, behind
from lumos.model.quantise import some_rows
from lumos.model.rope import Rotation, rotation
from lumos.model.transformer import Transformer
from lumos.ranks import Division, check_alike, divide
from lumos.sequence.layout import FRAME_HEAD, Grid, content_ids, frame_ids, frame_positions, key_positions, pack, sent, text_batch
from lumos.sequence.prompt_template import clock
from lumos.sequence.vocabulary import Vocabulary

OVERLAP = 2  # latent frames: the first is read as a picture, as in every video, and the next shows what moves
FEW_LOGITS = 2**23  # up to these, drawing a code for every place takes less time than launching a draw for a few
RETOLD = 0.97  # share of a frame that is hidden where another sentence follows
PictureOf = Callable[[int], Tensor]  # a finished latent frame -> codes_BN of its last picture, as they are of a picture alone


@dataclass(frozen=True)
class VideoSpec:
    """The video to make. Lengths are latent frames, unless they say otherwise."""

    grid: Grid
    latent_frames: int  # all of them, known ones included
    frames: int  # pixel frames, as the header says them
    fps: int  # of those
    window: int  # latent frames that see each other
    latest: int  # the last one whose position the model has met; a longer video is made in parts
    given: int = 0  # how many come from outside (an image, the start of a video): they are history from the beginning
    origin: int = 0  # the one that time counts from
    retold: int | None = None  # the one after which another sentence holds: mostly hidden, so that it is followed
    # pixel frame -> codes_HW of a picture that shows it; in view, like the prompt, as long as it is still to come
    keyframes: Mapping[int, Tensor] = field(default_factory=dict)


def origin_of(number: int, origin: int, latest: int) -> int:
    """Latent frame that the time of frame `number` counts from, in a video whose own time began at frame `origin`.

    Beyond `latest` no position is known. So a longer video is made in parts of `latest` + 1 latent frames, each of which begins
    with the last OVERLAP of the part before.
    """
    step = latest + 1 - min(OVERLAP, latest)
    return origin + step * max(0, -(-(number - origin - latest) // step))


class FrameModel:
    """Rows, cache and place in time of one batch. For each frame: `start_frame`, then `predict` in every step; then `commit`."""

    def __init__(
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        spec: VideoSpec,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        settings: SamplerConfig,
        compute: Compute,
        compiled: bool = False,
        picture: PictureOf | None = None,
    ) -> None:
        """prompts: text ids, those of equal length side by side, so that they share calls of attention. picture: for parts."""
        self.model, self.vocabulary, self.spec, self.grid = model, vocabulary, spec, spec.grid
        self.settings, self.compute, self.compiled, self.picture = settings, compute, compiled, picture
        self.origin = origin_of(spec.given, spec.origin, spec.latest)
        self.device, self.dtype = model.embedding.device, model.embedding.dtype
        self.window = settings.window or spec.window
        if self.window > spec.latest + 1:
            raise ValueError(
                f"window must be at most the {spec.latest + 1} latent frames that the model knows, got {self.window}"
            )
        self.ids = divide(self.grid.frame_length, compute.divided)
        if self.ids.world > 1:
            keyframes = {at: codes_HW.tolist() for at, codes_HW in spec.keyframes.items()}
            check_alike([prompts, seeds, settings, replace(spec, keyframes={}), keyframes])
        if self.ids.world > self.ids.count or (self.ids.world > 1 and self.grid.causal):
            most = 1 if self.grid.causal else self.ids.count
            rule = f"processes must be at most {most} for one video of this model and size"
            raise ValueError(f"{rule}, got {self.ids.world}; lower --nproc-per-node")
        self.guided = any(strength != 1 for strength in guidance_strengths(settings))
        self.streams = [stream_of(seed, prompt) for seed, prompt in zip(seeds, prompts, strict=True)]
        self.parts = 2 if vocabulary.sub_codes else 1  # sub-codes of a code
        first, count = vocabulary.first_code, vocabulary.choices
        self.heads_VD = [some_rows(model.head, first + part * count, count) for part in range(self.parts)]
        self.history: list[int] = []  # slots that every frame in the cache takes, the oldest first
        self.blank_1L = frame_ids(vocabulary, self.grid, content_ids(vocabulary, self._no_codes(1, 1)))[:, 0]
        places = torch.arange(self.grid.content, device=self.device).view(self.grid.rows, -1)
        self.slot_N = FRAME_HEAD + places[:, :-1].flatten()  # where in a frame's ids each code lies
        with fastest(self.device, SDPBackend.FLASH_ATTENTION):
            self._prefill(prompts)
        operations = pass_operations(model.config, len(self.starts) * self.grid.frame_length, self.cache.capacity)
        self.kernel = SDPBackend.CUDNN_ATTENTION if operations > LONG_PASS else SDPBackend.FLASH_ATTENTION
        self.header = self.cache.length
        self._write_keyframes()
        # Unconditional rows pause in steps without guidance, unless capturing one more graph takes longer than that saves.
        self.pausing = not self._graphs() or operations > LONG_PASS
        # of the newest frame, by its time, the slots before it, and rows
        self._passes: dict[tuple[int, int, int], Callable[[Tensor, Tensor], Tensor]] = {}
        self._draws: dict[tuple[float, ...], Replay] = {}  # by shapes and temperature

    def start_frame(self, number: int, steps: int, beside: Others = ()) -> tuple[Tensor, Tensor]:
        """Go to latent frame `number`; returns noise for every step, row and place: uniform [S, P, B, N], for each of P
        sub-codes, and Gumbel [S, B, N]. beside: models alike, of a prompt each, and where they go: rows of the same passes."""
        self._latent, self._beside = number - self.origin, [model for model, _ in beside]
        self._turn = self._rotation(self._latent)
        self._passes = {} if beside else self._passes  # a copy's own, where others take part
        self._passes.clear()
        rows = [torch.rand(self.parts + 1, steps, len(self.slot_N), generator=each(number, "frame")) for each in self.streams]
        uniform_PSBN = sent(torch.stack(rows, dim=2), self.device)  # drawn on the CPU: the same on every device
        noise = uniform_PSBN[:-1].transpose(0, 1), -(-uniform_PSBN[-1].clamp(min=1e-7).log()).log()
        uniforms, gumbels = zip(noise, *(model.start_frame(at, steps) for model, at in beside), strict=True)
        turns = zip(self._turn, *(model._turn for model in self._beside), strict=True)
        self._turn = Rotation(*(torch.stack(angles, 1).flatten(0, 1) for angles in turns))
        return torch.cat(uniforms, 2), torch.cat(gumbels, 1)

    def predict(self, codes_BN: Tensor, places_BM: Tensor, strength: float, temperature: float, uniform_PBN: Tensor) -> Guess:
        """One pass over the frame as it is (MASKED or known codes): a code drawn for each of the places asked for.

        uniform_PBN: random numbers for all places, of which those asked for are used, for each sub-code.
        """
        branches, places = 1 if strength == 1 else 2, divide(places_BM.shape[1], self.compute.divided)
        rows = branches * len(codes_BN)
        run = rows if self.pausing else len(self._turn.cos_BLK)
        ids_BN = torch.where(codes_BN == MASKED, self.vocabulary.mask, codes_BN + self.vocabulary.first_code)
        ids_BL = self.blank_1L.repeat(len(ids_BN), 1).index_copy(1, self.slot_N, ids_BN)
        draw = partial(draw_whole_codes, self.heads_VD, self.model.second, temperature, self.compiled)
        mine_BM = places.mine(places_BM, 1)
        if self._graphs():  # whose shapes are fixed: hidden states of all codes
            hidden_RND = self._again(run)(ids_BL, self.slot_N.expand(run, -1))
            if self.ids.world == 1 and run * hidden_RND.shape[1] * self.heads_VD[0].shape[0] <= FEW_LOGITS:
                key = *hidden_RND.shape, *uniform_PBN.shape, temperature
                everywhere = self._draws.setdefault(key, Replay(draw, self.model, key))
                guess = everywhere(hidden_RND, torch.full((), strength, device=self.device), uniform_PBN)
                return Guess(*(value_BN.gather(1, places_BM) for value_BN in guess))
            hidden_RMD = hidden_RND.take_along_dim(mine_BM.repeat(run // len(codes_BN), 1)[..., None], 1)
        else:
            hidden_RMD = self._again(run)(ids_BL, self.slot_N[mine_BM].repeat(run // len(codes_BN), 1))
        guess = draw(hidden_RMD[:rows], strength, uniform_PBN.gather(2, mine_BM.expand(self.parts, -1, -1)))
        return Guess(*(places.whole(value_BM, 1) for value_BM in guess))

    def commit(self, number: int, codes_BN: Tensor) -> None:
        """Make finished frame `number` history: one pass with part of its content masked writes its keys and values."""
        is_given = number < self.spec.given
        if number < max(self.origin, self.spec.given - (self.window - 1)):
            return  # it is never seen
        if (origin := origin_of(number + 1, self.origin, self.spec.latest)) > self.origin:  # here the next part begins
            self.origin, self.cache.length, self.history = origin, self.header, []
            self._write_keyframes()
            for past in range(origin, number + 1):  # the first of them as a picture
                self.commit(past, codes_BN)
            return
        if number == self.origin > 0:
            assert self.picture, "a video in parts needs its pictures"
            codes_BN = self.picture(number)
        if is_given and self.ids.world > 1:
            check_alike(codes_BN.tolist())
        codes_BHW = codes_BN.unflatten(1, (self.grid.rows, self.grid.columns))
        hidden_BHW = self._hidden(number, is_given)
        content_BHW = torch.where(hidden_BHW, self.vocabulary.mask, content_ids(self.vocabulary, codes_BHW))
        ids_BN = self.blank_1L.repeat(len(codes_BN), 1)
        ids_BN[:, FRAME_HEAD:-1] = content_BHW.flatten(1)
        with fastest(self.device, self.kernel):
            again = self._passes.get((number - self.origin, self.cache.length, len(self.starts)))
            at_RM = self.slot_N.expand(len(self.starts), -1)[:, : None if self._graphs() else 0]  # no hidden state is needed
            (again or self._pass(self._rotation(number - self.origin), len(self.starts)))(ids_BN, at_RM)
        self.cache.commit(self.grid.frame_length)
        self.history.append(self.grid.frame_length)
        if self.settings.only_visible and not (is_given and self.settings.sampler == "released"):
            visible = visible_content(self.grid.content, self.settings)
            self._keep(hidden_BHW.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :visible])
        if len(self.history) == self.window:
            self.cache.forget(self.prefix, self.history.pop(0))

    def _again(self, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """A pass over the frame in the making, for all its steps."""
        key = self._latent, self.cache.length, rows
        if key not in self._passes:
            models, run = [self, *self._beside], self._pass(self._turn, rows, self._beside)
            seen = tuple((tuple(one.starts[: rows // len(models)]), one.cache.length, one.cache.capacity) for one in models)
            shapes = rows, len(self.starts), self.ids, seen
            self._passes[key] = Replay(run, self.model, shapes) if self._graphs() else run
        return self._passes[key]

    def _pass(self, turn: Rotation, rows: int, beside: Sequence["FrameModel"] = ()) -> Callable[[Tensor, Tensor], Tensor]:
        """ids_BL of a frame, at_RM -> hidden_RMD there, of the first `rows` rows. (Not holding `self` frees memory.)"""
        turn = Rotation(*(self.ids.mine(angle_BLK[:rows], 1) for angle_BLK in turn))
        models, attend = [self, *beside], attend_to_earlier if self.grid.causal else attend_to_all
        calls = [partial(behind, attend(one.starts[: rows // len(models)]), one.cache, self.ids) for one in models]
        # Compiled and captured layers have one shape; another rank has other places; causal attention counts from the last one.
        whole = self.compiled or self._graphs() or self.ids.world > 1 or self.grid.causal
        return partial(frame_pass, self.model, calls, turn, self.ids, whole)

    def _rotation(self, latent: int) -> Rotation:
        position_BN3 = frame_positions(self.grid, self.length_B, latent, 1)
        return rotation(position_BN3, self.model.axis_K, self.model.inverse_frequency_K)

    def _graphs(self) -> bool:
        # A causal frame makes its masks on the way, which was never tried in a capture.
        return self.device.type == "cuda" and self.compute.graphs is not False and not self.grid.causal

    def _hidden(self, number: int, is_given: bool) -> Tensor:
        """Places of a finished frame that later frames do not see, bool [B, H, W + 1]."""
        rows, columns, share = self.grid.rows, self.grid.columns + 1, self.settings.history
        if number == self.spec.retold:
            share = max(share, RETOLD)
        if self.settings.sampler == "released":
            # Released code: not random, and given frames are cached unmasked.
            return sent(released_history_mask(len(self.streams), rows, columns, 0.0 if is_given else share), self.device)
        masks = [history_mask(1, rows, columns, share, stream(number, "history")) for stream in self.streams]
        return sent(torch.cat(masks), self.device)

    def _keep(self, content_BM: Tensor) -> None:
        """Of the newest cached frame keep its structure and the content slots at content_BM (ascending)."""
        B, whole = content_BM.shape[0], self.history[-1]
        head = torch.arange(FRAME_HEAD, device=self.device).expand(B, -1)
        index_BM = torch.cat([head, FRAME_HEAD + content_BM, head.new_full((B, 1), whole - 1)], dim=1)
        self.cache.keep(self.cache.length - whole, index_BM.repeat(len(self.starts) // B, 1))
        self.history[-1] = index_BM.shape[1]

    def _prefill(self, prompts: Sequence[list[int]]) -> None:
        """The cache, with prompt and header in it. A prompt's slots end where the header begins; shorter prompts start later."""
        config, spec = self.model.config, self.spec
        slots = max(len(prompt) for prompt in prompts) + 2  # with begin and separator
        text_BS, length_B = text_batch(self.vocabulary, [*prompts, *([[]] * len(prompts) if self.guided else [])], slots)
        self.starts = [slots - length for length in length_B.tolist()]
        self.length_B = sent(length_B, self.device)
        batch = pack(
            self.vocabulary,
            self.grid,
            sent(text_BS, self.device),
            self.length_B,
            self._no_codes(len(self.starts), 0, newline=1),
            *clock(spec.frames, spec.fps),
        )
        prefix = batch.ids_BL.shape[1]
        capacity = prefix + most_slots(spec, self.settings)
        rows = len(self.starts)
        self.cache = Cache(config.layers, rows, config.kv_heads, capacity, config.head_width, self.device, self.dtype)
        # This runs once per batch, and every length of prompt would be compiled anew. (To say so loads the compiler.)
        with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
            self.model(batch.ids_BL, batch.position_BL3, attend_to_earlier(self.starts), self.cache)
        self.cache.commit(prefix)

    def _write_keyframes(self) -> None:
        """Keyframes as blocks behind the header, at their true times: those to come that the model's time reaches."""
        temporal = self.grid.temporal
        for at, codes_HW in sorted(self.spec.keyframes.items()):
            time = at - self.origin * temporal
            if 0 < time <= self.spec.latest * temporal:
                ids_1N = frame_ids(self.vocabulary, self.grid, content_ids(self.vocabulary, codes_HW[None, None]))[:, 0]
                position_BN3 = key_positions(self.grid, self.length_B, torch.full_like(self.length_B, time))
                turn = rotation(position_BN3, self.model.axis_K, self.model.inverse_frequency_K)
                with fastest(self.device, self.kernel):
                    self._pass(turn, len(self.starts))(ids_1N, self.slot_N.expand(len(self.starts), -1)[:, :0])
                self.cache.commit(self.grid.frame_length)
        self.prefix = self.cache.length

    def _no_codes(self, rows: int, frames: int, newline: int = 0) -> Tensor:
        return torch.zeros(rows, frames, self.grid.rows, self.grid.columns + newline, dtype=torch.int64, device=self.device)


def frame_pass(
    model: Transformer, attends: Sequence[AttendOf], turn: Rotation, ids: Division, whole: bool, ids_BL: Tensor, at_RM: Tensor
) -> Tensor:
    """One pass over a frame behind all that is cached, to the hidden states at some places: the last layer works for these alone
    unless `whole`. Both branches of guidance see the same codes."""
    ids_RL = ids.mine(ids_BL, 1).repeat(turn.cos_BLK.shape[0] // ids_BL.shape[0], 1)
    calls = [(slice(first, None, len(attends)), attend) for first, attend in enumerate(attends)]
    at = None if whole else at_RM
    hidden_RXD = model.run(ids_RL, turn, lambda layer: by_rows([(rows, attend(layer)) for rows, attend in calls]), at)
    return ids.whole(hidden_RXD, 1).take_along_dim(at_RM[..., None], 1) if whole else hidden_RXD


def visible_content(content: int, settings: SamplerConfig) -> int:
    """Content slots that a frame has when it is history."""
    return content - round(settings.history * content) if settings.only_visible else content


def most_slots(spec: VideoSpec, settings: SamplerConfig) -> int:
    """The most slots that frames ever have in the cache, keyframes and the one in the making included."""
    grid = spec.grid
    whole_given = spec.given and settings.sampler == "released"  # Released code: given frames are not masked.
    visible = grid.content if whole_given else visible_content(grid.content, settings)
    seen = min(spec.latent_frames, settings.window or spec.window) - 1
    return seen * (visible + grid.frame_length - grid.content) + (1 + len(spec.keyframes)) * grid.frame_length


def stream_of(seed: int, prompt: Sequence[int]) -> Callable[[int, str], torch.Generator]:
    """A prompt's random streams: one for every (number of the latent frame, what for), the same in any batch."""

    def stream(number: int, purpose: str) -> torch.Generator:
        key = f"{seed} {number} {purpose} {list(prompt)}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big"))

    return stream

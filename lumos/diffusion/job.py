"""One batch in the making: text and header once, then frame after frame (paper section 3.3, sampling).

In: text ids of every prompt, a seed each, given codes. Out: codes of one latent frame at a time. Rows of the batch are all
conditional ones, then, with guidance, all unconditional ones: the same codes behind an empty prompt, in the same pass. Every
row's random numbers follow from its seed, its prompt and the frame's number alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lumos.diffusion.engine import WORTH_A_GRAPH, Compute, Replay, guess, pass_operations
from lumos.diffusion.history import most_slots, shrink, visible_content
from lumos.diffusion.masking import history_mask, released_history_mask
from lumos.diffusion.sampler import MASKED, Guess, SamplerConfig, sample_frame, strengths
from lumos.model.attention import attend_to_all, attend_to_earlier, fastest
from lumos.model.cache import Cache
from lumos.model.quantise import some_rows
from lumos.model.rope import Rotation, rotation
from lumos.model.transformer import Transformer
from lumos.sequence.layout import FRAME_HEAD, Grid, clock, content_ids, frame_ids, frame_positions, pack, text_batch
from lumos.sequence.vocabulary import Vocabulary

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is to be made: `frames` pixel frames at `fps`. `window` latent frames see each other; `latest` is the last one whose
    position the model has met; `trained` is the number of frames it was trained on. Of the latent frames, `at_hand` need not be
    made, and the first `given` of those were not made by the model."""

    grid: Grid
    frames: int
    fps: int
    window: int
    latest: int
    trained: int
    given: int = 0
    at_hand: int = 0

    @property
    def latent_frames(self) -> int:
        return 1 + (self.frames - 1) // 4


class Job:
    """Rows, cache and place in time of one batch. For each frame: `sample` it, or take it from those at hand; `commit` it."""

    def __init__(
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        plan: Plan,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        settings: SamplerConfig,
        compute: Compute,
        compiled: bool = False,
    ) -> None:
        self.model, self.vocabulary, self.plan, self.grid = model, vocabulary, plan, plan.grid
        self.settings, self.shortcuts, self.compute, self.compiled = settings, settings.shortcuts, compute, compiled
        self.device, self.dtype = model.embedding.device, model.embedding.dtype
        self.window = self.shortcuts.window or plan.window
        if self.window > plan.latest + 1:
            raise ValueError(
                f"window must be at most the {plan.latest + 1} latent frames that the model knows, got {self.window}"
            )
        codes = plan.grid.rows * plan.grid.columns
        self.per_frame = [settings.for_frame(number, codes) for number in range(plan.latent_frames)]
        self.guided = any(strength != 1 for each in self.per_frame for strength in strengths(each))
        # Prompts of one length lie side by side, so that they share calls of attention.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        self.order_B = torch.tensor(order, device=self.device)
        self.back_B = self.order_B.argsort()
        self.streams = [stream_of(seeds[row], prompts[row]) for row in order]
        self.head_VD = some_rows(model.head, vocabulary.first_code, vocabulary.codes)
        self.frames: list[int] = []  # content slots of every frame in the cache
        self.number = 0  # latent frames so far
        template_1N = frame_ids(vocabulary, self.grid, content_ids(vocabulary, self._no_codes(1, 1)))[:, 0]
        self.template_BN = template_1N.repeat(len(prompts), 1)
        places = torch.arange(self.grid.rows * (self.grid.columns + 1), device=self.device).view(self.grid.rows, -1)
        self.slot_N = FRAME_HEAD + places[:, :-1].flatten()  # where in a frame's ids each code lies
        with fastest(self.device, compute.kernel):
            self._prefill([prompts[row] for row in order])
        # Unconditional rows pause in steps without guidance, unless to capture one more graph takes longer than that spares.
        operations = pass_operations(model.config, len(self.starts) * self.grid.frame_length, self.cache.capacity)
        self.pausing = not self._graphs() or operations > WORTH_A_GRAPH

    def sample(self, progress: Progress | None = None) -> Tensor:
        """Codes of the next latent frame, codes_BHW."""
        settings = self.per_frame[self.number]
        strength_S = strengths(settings)
        uniform_SBN, gumbel_SBN = self._noise(settings.steps, self.slot_N.shape[0])
        turn = self._turn(min(self.number, self.plan.latest))
        passes: dict[int, Replay] = {}
        total = sum(each.steps for each in self.per_frame[self.plan.at_hand :])
        before = sum(each.steps for each in self.per_frame[self.plan.at_hand : self.number])

        def look(codes_BN: Tensor, places_BM: Tensor, step: int) -> Guess:
            rows = len(self.starts) if strength_S[step] != 1 else len(self.streams)
            run = rows if self.pausing else len(self.starts)
            if run not in passes:
                passes[run] = Replay(lambda ids: self._run(ids, turn, run), self._graphs())
            hidden_RND = passes[run](self._ids(codes_BN))[:rows]
            slots_RM = self.slot_N[places_BM].repeat(rows // len(self.streams), 1)
            hidden_RMD = hidden_RND.gather(1, slots_RM[..., None].expand(-1, -1, hidden_RND.shape[2]))
            uniform_BM, wants_entropy = uniform_SBN[step].gather(1, places_BM), self.settings.sampler == "entropy"
            found = guess(
                hidden_RMD,
                self.head_VD,
                strength_S[step],
                self.settings.temperature,
                uniform_BM,
                wants_entropy,
                self.compiled,
            )
            if progress:
                progress(before + step + 1, total)
            return found

        with fastest(self.device, self.compute.kernel):
            codes_BN = sample_frame(look, gumbel_SBN, settings, self.number - self.plan.given, self.grid.columns)
        return codes_BN.view(-1, self.grid.rows, self.grid.columns)[self.back_B]

    def commit(self, codes_BHW: Tensor) -> None:
        """Make a finished frame history: one pass with part of its content masked writes its keys and values."""
        number, self.number = self.number, self.number + 1
        is_given = number < self.plan.given
        if is_given and number < self.plan.given - (self.window - 1) and not (self.shortcuts.keep_first and number == 0):
            return  # given frames before the window are never seen
        hidden_BHW = self._hidden(number, is_given)
        content_BHW = content_ids(self.vocabulary, codes_BHW[self.order_B])
        content_BHW = torch.where(hidden_BHW, self.vocabulary.mask, content_BHW)
        ids_BN = self.template_BN.clone()
        ids_BN[:, FRAME_HEAD:-1] = content_BHW.flatten(1)
        # Given frames get the places in time that they have when the first new frame is made.
        given, latest = self.plan.given, self.plan.latest
        shown = max(0, min(given, latest) - (given - number)) if is_given else min(number, latest)
        with fastest(self.device, self.compute.kernel):
            self._run(ids_BN, self._turn(shown), len(self.starts))
        self.cache.commit(self.grid.frame_length)
        self.frames.append(self.grid.content)
        if self.shortcuts.only_visible and not (is_given and self.settings.sampler == "released"):
            visible = visible_content(self.grid.content, self.settings.history, self.shortcuts)
            self._keep(len(self.frames) - 1, hidden_BHW.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :visible])
        self._shrink()
        if not is_given and number >= latest:
            self._turn_back()

    def _run(self, ids_BN: Tensor, turn: Rotation, rows: int) -> Tensor:
        """One pass over a frame in the first `rows` rows (both branches of guidance see the same codes): hidden_RND."""
        ids_RN = ids_BN.repeat(rows // ids_BN.shape[0], 1)
        turn = Rotation(turn.cos_BLK[:rows], turn.sin_BLK[:rows])
        attend = attend_to_earlier if self.grid.causal else attend_to_all
        return self.model.run(ids_RN, turn, attend(self.starts[:rows]), self.cache)

    def _ids(self, codes_BN: Tensor) -> Tensor:
        ids_BN = torch.where(codes_BN == MASKED, self.vocabulary.mask, codes_BN + self.vocabulary.first_code)
        return self.template_BN.index_copy(1, self.slot_N, ids_BN)

    def _turn(self, latent: int) -> Rotation:
        position_BN3 = frame_positions(self.grid, self.length_B, latent, 1)
        return rotation(position_BN3, self.model.axis_K, self.model.inverse_frequency_K)

    def _graphs(self) -> bool:
        # A causal frame makes its masks on the way, which was never tried in a capture.
        wanted = self.compute.graphs is not False and not self.grid.causal
        return wanted and self.device.type == "cuda"

    def _noise(self, steps: int, codes: int) -> tuple[Tensor, Tensor]:
        """Uniform and Gumbel noise of every step, row and place, drawn on the CPU: the same on every device."""
        rows = [torch.rand(2, steps, codes, generator=stream(self.number, "frame")) for stream in self.streams]
        uniform_2SBN = self._to_device(torch.stack(rows, dim=2))
        return uniform_2SBN[0], -(-uniform_2SBN[1].clamp(min=1e-7).log()).log()

    def _hidden(self, number: int, is_given: bool) -> Tensor:
        """Places of a finished frame that later frames do not see, bool [B, H, W + 1]."""
        rows, columns, share = self.grid.rows, self.grid.columns + 1, self.settings.history
        if self.settings.sampler == "released":
            # Released code: not random, and given frames are cached unmasked.
            return released_history_mask(len(self.streams), rows, columns, 0.0 if is_given else share, self.device)
        cpu = torch.device("cpu")
        masks = [history_mask(1, rows, columns, share, stream(number, "history"), cpu) for stream in self.streams]
        return self._to_device(torch.cat(masks))

    def _shrink(self) -> None:
        kept = shrink(self.frames, self.window, self.shortcuts)
        for frame in reversed(range(len(kept))):  # the last first: what lies before it stays where it is
            count = kept[frame]
            if count is None:
                self.cache.forget(self._start(frame), self.frames.pop(frame) + self.grid.frame_length - self.grid.content)
            elif count < self.frames[frame]:
                every_second = torch.arange(0, self.frames[frame], 2, device=self.device)
                self._keep(frame, every_second.expand(len(self.streams), -1))

    def _keep(self, frame: int, content_BM: Tensor) -> None:
        """Keep a cached frame's structure and the content slots at content_BM (counted from its first, ascending)."""
        count, B = self.frames[frame], content_BM.shape[0]
        head = torch.arange(FRAME_HEAD, device=self.device).expand(B, -1)
        index_BM = torch.cat([head, FRAME_HEAD + content_BM, head.new_full((B, 1), FRAME_HEAD + count)], dim=1)
        structure = self.grid.frame_length - self.grid.content
        self.cache.keep(self._start(frame), count + structure, index_BM.repeat(len(self.starts) // B, 1))
        self.frames[frame] = content_BM.shape[1]

    def _start(self, frame: int) -> int:
        return self.prefix + sum(self.frames[:frame]) + frame * (self.grid.frame_length - self.grid.content)

    def _turn_back(self) -> None:
        """Beyond the last trained position time stands still: history moves one latent frame into the past instead.

        Rotary angles add up, so cached keys are turned by minus one frame: 4 in time for content, a frame's ids for structure.
        A first frame that is kept in view stays at the beginning of time.
        """
        zero = self.length_B.new_zeros(1)
        back_1N3 = frame_positions(self.grid, zero, 0, 1) - frame_positions(self.grid, zero, 1, 1)
        head, content, end = back_1N3[:, :FRAME_HEAD], back_1N3[:, FRAME_HEAD : FRAME_HEAD + 1], back_1N3[:, -1:]
        first = int(self.shortcuts.keep_first)
        if self.frames[first:]:
            turned = [torch.cat([head, content.expand(-1, count, -1), end], dim=1) for count in self.frames[first:]]
            turn = rotation(torch.cat(turned, dim=1), self.model.axis_K, self.model.inverse_frequency_K)
            self.cache.turn(self._start(first), turn)

    def _prefill(self, prompts: list[list[int]]) -> None:
        """The cache, with prompt and header in it. Slots of a prompt end where the header begins; shorter prompts start later."""
        config, plan, grid = self.model.config, self.plan, self.grid
        slots = max(len(prompt) for prompt in prompts) + 2  # with begin and separator
        text_BS, length_B = text_batch(self.vocabulary, [*prompts, *([[]] * len(prompts) if self.guided else [])], slots)
        self.starts = [slots - length for length in length_B.tolist()]
        self.length_B = self._to_device(length_B)
        batch = pack(
            self.vocabulary,
            grid,
            self._to_device(text_BS),
            self.length_B,
            self._no_codes(len(self.starts), 0, newline=1),
            *clock(min(plan.frames, plan.trained), plan.fps),
        )
        self.prefix = batch.ids_BL.shape[1]
        visible = visible_content(grid.content, self.settings.history, self.shortcuts)
        if plan.given and self.settings.sampler == "released":
            visible = grid.content
        capacity = self.prefix + most_slots(plan.latent_frames, grid.content, visible, self.window, self.shortcuts)
        rows = len(self.starts)
        self.cache = Cache(config.layers, rows, config.kv_heads, capacity, config.head_width, self.device, self.dtype)
        # Once a job, and every length of prompt would be compiled anew. (To say so loads the compiler.)
        with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
            self.model(batch.ids_BL, batch.position_BL3, attend_to_earlier(self.starts), self.cache)
        self.cache.commit(self.prefix)

    def _no_codes(self, rows: int, frames: int, newline: int = 0) -> Tensor:
        return torch.zeros(rows, frames, self.grid.rows, self.grid.columns + newline, dtype=torch.int64, device=self.device)

    def _to_device(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda":  # from pinned memory the copy needs no wait
            return values.pin_memory().to(self.device, non_blocking=True)
        return values


def stream_of(seed: int, prompt: Sequence[int]) -> Callable[[int, str], torch.Generator]:
    """A prompt's random streams: one for every (number of the latent frame, what for), the same in any batch."""

    def stream(number: int, purpose: str) -> torch.Generator:
        key = f"{seed} {number} {purpose} {list(prompt)}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big"))

    return stream

"""The reverse process (paper section 3.3): frame after frame, a frame's codes from all-MASK, revealed over a few steps.

`sample_video` is the paper's Algorithm 2. Behind it stands `FrameModel`: the decoder with its cache, guidance, and the draw from
the softmax. Nothing here waits for the device, because how many codes stay masked is known beforehand.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from lumos.config import Range, Share
from lumos.model.attention import fastest
from lumos.sequence.layout import sent

if TYPE_CHECKING:
    from lumos.diffusion.frame_model import FrameModel

MASKED = -1  # stands for MASK in a frame's codes
Factor = Annotated[float, Range(0, 1e4)]
SomeFactor = Annotated[float, Range(1e-3, 1e4)]
SamplerKind = Literal["paper", "released", "random", "halton"]
Progress = Callable[[int, int], None]
Others = Sequence[tuple["FrameModel", int]]  # other models, and the frame that each is to make in the same passes


@dataclass(frozen=True)
class SamplerConfig:
    """How frames are sampled. The defaults are the paper's method; what is not in the paper is off by default."""

    steps: Annotated[int, Range(1, 2**16)] = 12  # denoising steps per latent frame
    guidance: Factor = 3.0  # strength g of classifier-free guidance: unconditional + g (conditional - unconditional); 1 = none
    temperature: SomeFactor = 1.0  # of the softmax that codes are drawn from
    # weight T of the Gumbel noise in choosing which codes to keep, in a frame's first step; falls to 0 in its last
    noise: Factor = 1.0
    history: Annotated[float, Range(0, 0.999)] = 0.7  # share of every finished frame that is masked in later frames' view
    # paper: keep the most confident codes. released: the same with the published code's deviations, each marked where it acts.
    # random, halton: reveal in an order fixed beforehand (Halton: arXiv 2503.17076)
    sampler: SamplerKind = "paper"
    # the first latent frame takes this many times the steps, since nothing before it says what is where
    first: SomeFactor = field(default=1.0, metadata={"later": True})
    # no guidance, and no unconditional pass, from this share of the steps on
    guidance_until: Share = field(default=1.0, metadata={"later": True})
    # leave masked places of finished frames out of the cache: faster, and no longer the paper's
    only_visible: bool = field(default=False, metadata={"later": True})
    # latent frames that see each other, the present one included; none = as trained
    window: Annotated[int, Range(1, 2**18)] | None = field(default=None, metadata={"later": True})

    def for_frame(self, number: int, codes: int) -> "SamplerConfig":
        """The settings for latent frame `number` of a video: with the steps that it takes, never more than its codes."""
        if number or self.first == 1:
            return self
        return replace(self, steps=max(1, min(round(self.first * self.steps), codes)), first=1.0)


def from_earlier_version(config: dict[str, Any]) -> dict[str, Any]:
    """A model folder's config as an earlier version wrote it: some settings of the sampler in a group `shortcuts`, now flat.

    Settings that are gone are dropped where they had no effect; otherwise they stay, and are refused as unknown by name.
    """
    sampler = config.get("sampler")
    if not isinstance(sampler, dict) or not isinstance(sampler.get("shortcuts", {}), dict):
        return config
    gone = {"guidance_schedule": "constant", "guidance_from": 0.0, "pack": False, "keep_first": False}
    alone = ("shortcuts", "bound", "remask")  # the last two of samplers that are gone
    flat = {name: value for name, value in (sampler | sampler.get("shortcuts", {})).items() if name not in alone}
    return {**config, "sampler": {name: value for name, value in flat.items() if name not in gone or value != gone[name]}}


def sample_video(
    model: "FrameModel", config: SamplerConfig, known_BTN: Tensor, progress: Progress | None = None
) -> Iterator[Tensor]:
    """Codes of one latent frame after another, codes_BN: the paper's Algorithm 2.

    known_BTN: codes of the first frames, which are yielded as they are. progress: called with (steps done, all of them).
    Raises ValueError for more steps than a frame has codes.
    """
    _, known, N = known_BTN.shape
    per_frame = [config.for_frame(number, N) for number in range(model.spec.latent_frames)]
    done, total = 0, sum(settings.steps for settings in per_frame[known:])

    def tell(step: int, _: int) -> None:
        if progress:
            progress(done + step, total)

    for number, settings in enumerate(per_frame):  # frames, one after another
        if number < known:
            codes_BN = known_BTN[:, number]
        else:
            codes_BN = sample_frame(model, settings, number, tell)
            done += settings.steps
        yield codes_BN
        if number + 1 < len(per_frame):  # once it is shown; nothing will see the last frame
            model.commit(number, codes_BN)  # as history, partly masked


def sample_frame(model: "FrameModel", config: SamplerConfig, number: int, tell: Progress | None, beside: Others = ()) -> Tensor:
    """codes_BN of latent frame `number` behind history, then a row of each in `beside`. tell: of (steps done, all of them)."""
    uniform_SPBN, gumbel_SBN = model.start_frame(number, config.steps, beside)
    N, strength_S = gumbel_SBN.shape[2], guidance_strengths(config)
    noise_S = place_noise(config, number - model.spec.given)
    codes_BN = torch.full_like(gumbel_SBN[0], MASKED, dtype=torch.int64)
    masked_BM = reveal_order(config, gumbel_SBN[0], model.grid.columns)
    with fastest(model.device, model.kernel):
        for step, (left, asked) in enumerate(zip(codes_left(N, config.steps), places_asked(config, N), strict=True)):
            ask_BM = masked_BM[:, :asked]  # steps: all places see each other
            guess = model.predict(codes_BN, ask_BM, strength_S[step], config.temperature, uniform_SPBN[step])
            codes_BN = codes_BN.scatter(1, ask_BM, guess.code_BM)
            if config.sampler in FIXED:
                masked_BM = masked_BM[:, asked:]
            else:  # keep the most confident codes: log-probability + T * Gumbel noise
                score_BM = guess.log_probability_BM + noise_S[step] * gumbel_SBN[step].gather(1, ask_BM)
                masked_BM = ask_BM.gather(1, score_BM.topk(left, largest=False).indices)
            codes_BN = codes_BN.scatter(1, masked_BM, MASKED)
            if tell:
                tell(step + 1, config.steps)
    return codes_BN


def codes_left(codes: int, steps: int) -> list[int]:
    """How many codes stay masked after each step: floor(N cos(pi/2 (step + 1) / steps)), falling by at least 1, to 0."""
    if not 1 <= steps <= codes:
        raise ValueError(f"steps must be 1 to the {codes} codes of a frame, got {steps}")
    left, remaining = [], codes
    for step in range(steps - 1):
        remaining = max(1, min(remaining - 1, math.floor(codes * math.cos(math.pi / 2 * (step + 1) / steps))))
        left.append(remaining)
    return [*left, 0]


def places_asked(config: SamplerConfig, codes: int) -> list[int]:
    """Of how many places of a frame each step asks the model for codes."""
    masked = [codes, *codes_left(codes, config.steps)]
    if config.sampler in FIXED:  # those only that it reveals
        return [before - after for before, after in pairwise(masked)]
    return masked[:-1]


def place_noise(config: SamplerConfig, frame: int) -> list[float]:
    """Weight T of the Gumbel noise in every step of the `frame`-th generated frame: it falls linearly to 0 within a frame."""
    falling = [1 - (step + 1) / config.steps for step in range(config.steps)]
    if config.sampler == "released":
        # Released code: T is multiplied by (1 - (step + 1) / steps) after every step and never reset, so it reaches 0 in the
        # first generated frame and stays there.
        weights = [config.noise if frame == 0 else 0.0]
        for share in falling[:-1]:
            weights.append(weights[-1] * share)
        return weights
    return [config.noise * share for share in falling]


def guidance_strengths(config: SamplerConfig) -> list[float]:
    """Guidance strength of every step; 1 = none, and no unconditional pass is made."""
    return [config.guidance if step / config.steps < config.guidance_until else 1.0 for step in range(config.steps)]


FIXED = ("random", "halton")  # samplers whose order does not depend on what the model finds


def reveal_order(config: SamplerConfig, gumbel_BN: Tensor, columns: int) -> Tensor:
    """All places of a frame [B, N], in the order in which a sampler of `FIXED` reveals them; in plain order for the others."""
    B, N = gumbel_BN.shape
    if config.sampler == "random":
        return gumbel_BN.argsort(dim=-1)
    if config.sampler == "halton":
        return sent(torch.tensor(halton_order(N // columns, columns)), gumbel_BN.device).expand(B, N)
    return torch.arange(N, device=gumbel_BN.device).expand(B, N)


@cache
def halton_order(rows: int, columns: int) -> tuple[int, ...]:
    """All places of a frame, each as far from its forerunners as Halton's points (bases 2 and 3) are."""
    order: dict[int, None] = {}
    point = 0
    while len(order) < rows * columns:
        point += 1
        order[int(_mirrored(point, 2) * rows) * columns + int(_mirrored(point, 3) * columns)] = None
    return tuple(order)


def _mirrored(number: int, base: int) -> float:
    """The digits of `number` mirrored at the point: 6 = 110 in base 2 becomes 0.011."""
    value, digit = 0.0, 1.0
    while number:
        digit /= base
        number, last = divmod(number, base)
        value += digit * last
    return value

"""The reverse process: a frame's codes from all-MASK, revealed over a few steps (paper section 3.3, sampling).

Every sampler is a pure function of `look`, which guesses codes at the places asked for (the model, guidance and the draw from
the softmax are behind it), and of noise drawn beforehand. Only `by_entropy` waits for the device, as it decides how many steps
there are; the others know beforehand how many codes stay masked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MASKED = -1  # stands for MASK in a frame's codes
PART = 256  # codes that are summed up together when one is drawn
SamplerKind = Literal["paper", "released", "random", "halton", "entropy", "remask"]


@dataclass(frozen=True)
class Shortcuts:
    """What may be left out or done otherwise than in the paper; the defaults leave out nothing.

    guidance_schedule: `rising` goes from 1 in the first step to the full strength in the last. Before the share
    `guidance_from` of the steps, and from `guidance_until` on, there is no guidance and no unconditional pass.
    bound: nats of joint entropy that the codes of one step of `entropy` may have. remask: share of the known codes that a
    step of `remask` hides again. History: `only_visible` leaves its masked places out of the cache; `pack` halves what is kept
    of a frame with every frame of distance; `window` latent frames see each other (None = as trained); `keep_first` keeps the
    first frame in view when the window moves on.
    """

    guidance_schedule: Literal["constant", "rising"] = "constant"
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    bound: float = 1.0
    remask: float = 0.1
    only_visible: bool = False
    pack: bool = False
    window: int | None = None
    keep_first: bool = False

    def __post_init__(self) -> None:
        for name in ("guidance_from", "guidance_until", "remask"):
            if not 0 <= getattr(self, name) <= 1:  # False for NaN, too
                raise ValueError(f"{name} must be a share from 0 to 1, got {getattr(self, name)}; correct it")
        if not (math.isfinite(self.bound) and self.bound >= 0):
            raise ValueError(f"bound must be 0 nats or more, got {self.bound}; 1 is usual, less takes more steps")
        if self.window is not None and self.window < 1 + self.keep_first:
            raise ValueError(f"window must be at least {1 + self.keep_first} latent frames, got {self.window}; use more")


@dataclass(frozen=True)
class SamplerConfig:
    """steps per frame; guidance strength g of uncond + g (cond - uncond); temperature of the code's softmax; `noise`, the
    Gumbel weight T that choosing places starts with; history: share of a finished frame that later frames do not see.

    sampler: `paper` keeps the most confident codes; `released` too, with the published code's deviations (each is marked where
    it acts); `random` and `halton` reveal in an order fixed beforehand; `entropy` takes as few steps as `Shortcuts.bound`
    allows, `steps` at most; `remask` hides some known codes again (ReMDM). first: a video's first latent frame (all of an
    image) takes so many times the steps: nothing before it says what is where.
    """

    steps: int = 12
    guidance: float = 3.0
    temperature: float = 1.0
    noise: float = 1.0
    history: float = 0.7
    sampler: SamplerKind = "paper"
    shortcuts: Shortcuts = field(default_factory=Shortcuts, metadata={"later": True})
    first: float = field(default=1.0, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}; use 8 to 50")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a number of 0 or more, got {self.guidance}; 1 is none, 3 is usual")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}; 1 is usual")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be 0 or more, got {self.noise}; 1 is usual")
        if not 0 <= self.history < 1:
            raise ValueError(f"history must be from 0 up to, not including, 1, got {self.history}; 0.7 is usual")
        if not (math.isfinite(self.first) and self.first > 0):
            raise ValueError(f"first must be a factor above 0, got {self.first}; 1 gives all frames the same steps")

    def for_frame(self, number: int, codes: int) -> "SamplerConfig":
        """The settings for latent frame `number` of a video: with the steps that it takes, never more than its codes."""
        if number or self.first == 1:
            return self
        return replace(self, steps=max(1, min(round(self.first * self.steps), codes)), first=1.0)


class Guess(NamedTuple):
    """A code drawn for each place asked for, its log-probability, and the entropy (nats) of what it was drawn from, if asked."""

    code_BM: Tensor
    log_probability_BM: Tensor
    entropy_BM: Tensor | None = None


# codes_BN with MASKED places, places_BM to guess at, number of the step -> Guess
Look = Callable[[Tensor, Tensor, int], Guess]


def sample_frame(
    look: Look,
    gumbel_SBN: Tensor,
    config: SamplerConfig,
    frame: int = 0,
    columns: int = 1,
) -> Tensor:
    """Codes of one latent frame, codes_BN, N = rows x columns. gumbel_SBN: standard Gumbel noise, a value a step and place.

    frame: how many were generated before it. Raises ValueError for more steps than codes.
    """
    N = gumbel_SBN.shape[2]
    left = codes_left(N, config.steps)
    if config.sampler == "halton":
        order_N = torch.tensor(halton_order(N // columns, columns), device=gumbel_SBN.device)
        return by_order(look, order_N.expand(gumbel_SBN.shape[1], N), left)
    if config.sampler == "random":
        return by_order(look, gumbel_SBN[0].argsort(dim=-1), left)
    if config.sampler == "entropy":
        return by_entropy(look, gumbel_SBN[0], left, config.shortcuts.bound)
    remask = config.shortcuts.remask if config.sampler == "remask" else 0.0
    return by_confidence(look, gumbel_SBN, left, place_noise(config, frame), remask)


def by_confidence(look: Look, gumbel_SBN: Tensor, left: list[int], noise: list[float], remask: float = 0.0) -> Tensor:
    """Draw every masked code, keep the most confident ones: log-probability + T * Gumbel noise (the paper's).

    remask: before each step but the first, that share of the known codes is masked again, the less confident rather than the
    others (ReMDM, arXiv 2503.00307: a draw without replacement from softmax(-log-probability)).
    """
    codes_BN, places_BM = _all_masked(gumbel_SBN[0])
    confidence_BN = torch.zeros_like(gumbel_SBN[0])
    for step, (count, weight) in enumerate(zip(left, noise, strict=True)):
        guess = look(codes_BN, places_BM, step)
        codes_BN = codes_BN.scatter(1, places_BM, guess.code_BM)
        if not count:
            break
        confidence_BN = confidence_BN.scatter(1, places_BM, guess.log_probability_BM)
        gumbel_BN = gumbel_SBN[step]
        score_BM = guess.log_probability_BM + weight * gumbel_BN.gather(1, places_BM)
        stay = [places_BM.gather(1, score_BM.topk(count, largest=False).indices)]
        known_before = codes_BN.shape[1] - places_BM.shape[1]
        if again := round(remask * known_before):
            doubt_BN = (gumbel_BN - confidence_BN).scatter(1, places_BM, -torch.inf)
            stay.append(doubt_BN.topk(again).indices)
        places_BM = torch.cat(stay, dim=1)
        codes_BN = codes_BN.scatter(1, places_BM, MASKED)
    return codes_BN


def by_order(look: Look, order_BN: Tensor, left: list[int]) -> Tensor:
    """Reveal places in a fixed order; only those of the step are looked at (Halton's order: arXiv 2503.17076)."""
    codes_BN, _ = _all_masked(order_BN)
    known = 0
    for step, count in enumerate(left):
        places_BM = order_BN[:, known : order_BN.shape[1] - count]
        codes_BN = codes_BN.scatter(1, places_BM, look(codes_BN, places_BM, step).code_BM)
        known = order_BN.shape[1] - count
    return codes_BN


def by_entropy(look: Look, like_BN: Tensor, left: list[int], bound: float) -> Tensor:
    """Reveal the surest codes as long as their joint entropy stays within `bound` (arXiv 2505.24857), and at least as many as
    the schedule `left`. Waits for the device once a step, as rows differ in how far they are."""
    codes_BN, _ = _all_masked(like_BN)
    for step, count in enumerate(left):
        masked_BN = codes_BN == MASKED
        most = int(masked_BN.sum(dim=1).max())
        if not most:
            break
        places_BM = masked_BN.to(torch.uint8).topk(most).indices
        masked_BM = masked_BN.gather(1, places_BM)  # rows that are further have fewer masked places than asked for
        guess = look(codes_BN, places_BM, step)
        assert guess.entropy_BM is not None
        entropy_BM, order_BM = guess.entropy_BM.masked_fill(~masked_BM, torch.inf).sort(dim=1)
        # sum - max <= bound: the places within a step are treated as independent, which costs at most that much.
        within_BM = entropy_BM.cumsum(dim=1) - entropy_BM <= bound
        due_B1 = masked_BM.sum(dim=1, keepdim=True) - count
        within_BM |= torch.arange(most, device=codes_BN.device) < due_B1
        reveal_BM = torch.zeros_like(masked_BM).scatter(1, order_BM, within_BM) & masked_BM
        codes_BM = torch.where(reveal_BM, guess.code_BM, codes_BN.gather(1, places_BM))
        codes_BN = codes_BN.scatter(1, places_BM, codes_BM)
    return codes_BN


def codes_left(codes: int, steps: int) -> list[int]:
    """How many codes stay masked after each step: floor(N cos(pi/2 (step + 1) / steps)), falling by at least 1, 0 at the end."""
    if not 1 <= steps <= codes:
        raise ValueError(f"steps must be 1 to the {codes} codes of a frame, got {steps}")
    left, remaining = [], codes
    for step in range(steps - 1):
        remaining = max(1, min(remaining - 1, math.floor(codes * math.cos(math.pi / 2 * (step + 1) / steps))))
        left.append(remaining)
    return [*left, 0]


def place_noise(config: SamplerConfig, frame: int) -> list[float]:
    """Gumbel weight T of every step of generated frame number `frame`: falls linearly to 0 over each frame's steps."""
    if config.sampler == "released":
        # Released code: T is multiplied by (1 - (step + 1) / steps) after every step and never reset, so it reaches 0 in the
        # first generated frame and stays there.
        weight, weights = config.noise if frame == 0 else 0.0, []
        for step in range(config.steps):
            weights.append(weight)
            weight *= 1 - (step + 1) / config.steps
        return weights
    return [config.noise * (1 - (step + 1) / config.steps) for step in range(config.steps)]


def strengths(config: SamplerConfig) -> list[float]:
    """Guidance strength of every step; 1 = none, and no unconditional pass is made."""
    steps, shortcuts = config.steps, config.shortcuts
    found = []
    for step in range(steps):
        inside = shortcuts.guidance_from <= step / steps < shortcuts.guidance_until
        share = step / (steps - 1) if shortcuts.guidance_schedule == "rising" and steps > 1 else 1.0
        found.append(1 + (config.guidance - 1) * share if inside else 1.0)
    return found


@cache
def halton_order(rows: int, columns: int) -> tuple[int, ...]:
    """All places of a frame, each as far from its forerunners as Halton's points (bases 2 and 3) are."""
    order: dict[int, None] = {}
    point = 0
    while len(order) < rows * columns:
        point += 1
        order[int(_mirrored(point, 2) * rows) * columns + int(_mirrored(point, 3) * columns)] = None
    return tuple(order)


def choose(logits_BMV: Tensor, temperature: float, uniform_BM: Tensor, entropy: bool = False) -> Guess:
    """Draw a code a place: the one where the distribution function of the softmax passes `uniform_BM` (in [0, 1)).

    One random number a place instead of one a code, and no wait for the device. Two levels, first parts of the vocabulary, then
    codes within a part, so that the probabilities of all codes need never be written down.
    """
    codes = logits_BMV.shape[-1]
    part = max(size for size in range(1, min(PART, codes) + 1) if codes % size == 0)
    scaled = logits_BMV.float() / temperature
    top = scaled.amax(dim=-1, keepdim=True)
    weight = (scaled - top).exp()
    sums_BMP = weight.unflatten(-1, (-1, part)).sum(dim=-1)
    upto_BMP = sums_BMP.cumsum(dim=-1)
    total_BM1 = upto_BMP[..., -1:]
    aim_BM1 = uniform_BM[..., None].clamp(max=1 - 2**-20) * total_BM1
    chosen_BM1 = torch.searchsorted(upto_BMP, aim_BM1, right=True)
    rest_BM1 = (aim_BM1 - (upto_BMP - sums_BMP).gather(-1, chosen_BM1)).clamp(min=0)
    codes_BMp = chosen_BM1 * part + torch.arange(part, device=logits_BMV.device)
    within_BMp = weight.gather(-1, codes_BMp).cumsum(dim=-1)
    # rounding may leave a little more to go than the part holds: then its last code that has any weight
    place_BM1 = torch.searchsorted(within_BMp, torch.minimum(rest_BM1, within_BMp[..., -1:] * (1 - 2**-20)), right=True)
    code_BM1 = chosen_BM1 * part + place_BM1
    log_probability_BM = (scaled.gather(-1, code_BM1) - top - total_BM1.log())[..., 0]
    if not entropy:
        return Guess(code_BM1[..., 0], log_probability_BM)
    mean_BM1 = (weight * (scaled - top)).sum(dim=-1, keepdim=True) / total_BM1
    return Guess(code_BM1[..., 0], log_probability_BM, (total_BM1.log() - mean_BM1)[..., 0])


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits, in float32."""
    conditional, unconditional = conditional.float(), unconditional.float()
    return unconditional + guidance * (conditional - unconditional)


def _all_masked(like_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Codes all MASKED, and all places."""
    places_N = torch.arange(like_BN.shape[1], device=like_BN.device)
    return torch.full(like_BN.shape, MASKED, device=like_BN.device), places_N.expand(like_BN.shape)


def _mirrored(number: int, base: int) -> float:
    """The digits of `number` mirrored at the point: 6 = 110 in base 2 becomes 0.011."""
    value, digit = 0.0, 1.0
    while number:
        digit /= base
        number, last = divmod(number, base)
        value += digit * last
    return value

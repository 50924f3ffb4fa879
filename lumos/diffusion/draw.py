"""Hidden states -> logits of visual codes, guidance, and one code drawn per place with its log-probability."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lumos.model.quantise import Fp8, multiply
from lumos.model.transformer import SecondSubCode

MOST_LOGITS = 2**26  # logits in memory at once
PART = 256  # codes that are summed up together when one is drawn
WORTH_COMPILING = 64  # fewest places for which it pays; a single one would even be compiled anew
Strength = float | Tensor  # of guidance; a tensor where it changes in a CUDA graph


class Guess(NamedTuple):
    """A code drawn for each place asked for, and its log-probability."""

    code_BM: Tensor
    log_probability_BM: Tensor


def draw_whole_codes(
    heads_VD: Sequence[Tensor | Fp8],
    second: SecondSubCode | None,
    temperature: float,
    compiled: bool,
    hidden_RMD: Tensor,
    strength: Strength,
    uniform_PBM: Tensor,
) -> Guess:
    """A code for each place; of two sub-codes the second is drawn in sight of the first, and their log-probabilities add up."""
    low = draw_codes(hidden_RMD, heads_VD[0], strength, temperature, uniform_PBM[0], compiled)
    if second is None:
        return low
    hidden_RMD = second(hidden_RMD, low.code_BM.repeat(len(hidden_RMD) // len(low.code_BM), 1))
    high = draw_codes(hidden_RMD, heads_VD[1], strength, temperature, uniform_PBM[1], compiled)
    return Guess(low.code_BM + heads_VD[0].shape[0] * high.code_BM, low.log_probability_BM + high.log_probability_BM)


def draw_codes(
    hidden_RMD: Tensor, head_VD: Tensor | Fp8, strength: Strength, temperature: float, uniform_BM: Tensor, compiled: bool = False
) -> Guess:
    """Codes drawn at M places of B samples from hidden states of R = 2 B rows (both branches of guidance) or R = B.

    Logits exist for a part of the places at a time, on the visual ids only.
    """
    draw = _compiled_draw() if compiled and uniform_BM.shape[1] >= WORTH_COMPILING else _draw
    step = max(1, MOST_LOGITS // (hidden_RMD.shape[0] * head_VD.shape[0]))
    parts = [
        draw(multiply(hidden, head_VD), strength, temperature, uniform)
        for hidden, uniform in zip(hidden_RMD.split(step, dim=1), uniform_BM.split(step, dim=1), strict=True)
    ]
    joined = [torch.cat(group, dim=1) for group in zip(*parts, strict=True)]
    return Guess(*joined)


def draw_one(logits_BMV: Tensor, temperature: float, uniform_BM: Tensor) -> Guess:
    """Draw one code per place: the one where the cumulative softmax passes `uniform_BM` (in [0, 1)).

    This takes one random number per place instead of one per code, and no wait for the device. It works on two levels, first
    parts of the vocabulary, then codes within a part, so that the probabilities of all codes need never be written down.
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
    return Guess(code_BM1[..., 0], log_probability_BM)


def guide(conditional: Tensor, unconditional: Tensor, guidance: Strength) -> Tensor:
    """Classifier-free guidance on logits, in float32."""
    conditional, unconditional = conditional.float(), unconditional.float()
    return unconditional + guidance * (conditional - unconditional)


def _draw(logits_RMV: Tensor, strength: Strength, temperature: float, uniform_BM: Tensor) -> Guess:
    if logits_RMV.shape[0] != uniform_BM.shape[0]:
        conditional, unconditional = logits_RMV.chunk(2)
        logits_RMV = guide(conditional, unconditional, strength)
    return draw_one(logits_RMV, temperature, uniform_BM)


# Fused, the float32 values exist in registers alone; the number of places falls from step to step.
_compiled_draw = cache(lambda: torch.compile(_draw))

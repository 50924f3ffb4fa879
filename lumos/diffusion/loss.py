"""Cross-entropy at masked codes over the visual ids only, never holding more than one chunk of logits (paper section 3.3).

In: hidden states and targets at masked places, a weight for each. Out: the weighted sum, and every place's own loss (no
gradient) for the per-frame report. Gradients are made in the forward pass, chunk by chunk, and added up in float32.
"""

from functools import cache

import torch
from torch import Tensor

from lumos.model.transformer import Transformer
from lumos.sequence.vocabulary import Vocabulary

LOGITS = 2**27  # in one chunk: 512 MiB of them as float32


def code_loss(
    model: Transformer, vocabulary: Vocabulary, hidden_MD: Tensor, target_M: Tensor, weight_M: Tensor
) -> tuple[Tensor, Tensor]:
    """`weighted_code_loss` of codes; of both sub-codes, summed, where codes have two, the second in sight of the right first."""
    first, count = vocabulary.first_code, vocabulary.sub_codes
    if model.second is None:
        return weighted_code_loss(hidden_MD, model.head[first : first + vocabulary.codes], target_M, weight_M)
    low_M, high_M = target_M % count, target_M // count
    low, low_loss_M = weighted_code_loss(hidden_MD, model.head[first : first + count], low_M, weight_M)
    hidden_MD = model.second(hidden_MD, low_M)
    high, high_loss_M = weighted_code_loss(hidden_MD, model.head[first + count : first + 2 * count], high_M, weight_M)
    return low + high, low_loss_M + high_loss_M


def weighted_code_loss(hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """sum(weight * cross-entropy) and the cross-entropy of each place, loss_M (float32, detached).

    head_VD: the head's rows of the visual ids; target_M: codes 0 ... V - 1. For a mean over masked codes give weight = 1 / their
    number in the *whole* batch (all parts, all ranks).
    """
    total, loss_M = _ChunkedCrossEntropy.apply(hidden_MD, head_VD, target_M, weight_M, max(1, LOGITS // head_VD.shape[0]))
    return total, loss_M


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, weight_M: Tensor, chunk: int):  # type: ignore[no-untyped-def]
        device = hidden_MD.device
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden_MD.dtype
        head = head_VD.to(kind)
        loss_M = torch.empty(hidden_MD.shape[0], dtype=torch.float32, device=device)
        hidden_grad = torch.empty_like(hidden_MD)
        # none of a frozen head, as beside adapters: it is the largest tensor of the step
        head_grad = torch.zeros(head_VD.shape, dtype=torch.float32, device=device) if ctx.needs_input_grad[1] else None
        losses_and_slope = _compiled() if device.type == "cuda" else _losses_and_slope
        for start in range(0, hidden_MD.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden = hidden_MD[part].to(kind)
            loss_M[part], slope = losses_and_slope(hidden @ head.T, target_M[part], weight_M[part].float())
            hidden_grad[part] = slope @ head
            if head_grad is not None:
                head_grad += slope.T @ hidden
        ctx.save_for_backward(hidden_grad, head_grad)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(loss_M)
        return (loss_M * weight_M).sum(), loss_M

    @staticmethod
    def backward(ctx, total_grad: Tensor, _loss_grad: Tensor):  # type: ignore[no-untyped-def]
        hidden_grad, head_grad = ctx.saved_tensors
        if head_grad is not None:  # in place: nothing else holds it
            head_grad = head_grad.mul_(total_grad).to(ctx.head_dtype)
        return hidden_grad.mul_(total_grad), head_grad, None, None, None


def _losses_and_slope(logits_MV: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every row in float32, and its weighted slope (softmax - one hot) in the logits' type."""
    log_probability = logits_MV.float().log_softmax(dim=-1)
    loss_M = -log_probability.gather(1, target_M[:, None])[:, 0]
    is_target = torch.arange(logits_MV.shape[1], device=logits_MV.device) == target_M[:, None]
    slope_MV = (log_probability.exp() - is_target.float()) * weight_M[:, None]
    return loss_M, slope_MV.to(logits_MV.dtype)


# Fused, the float32 values exist in registers alone; the number of rows varies from batch to batch.
_compiled = cache(lambda: torch.compile(_losses_and_slope))

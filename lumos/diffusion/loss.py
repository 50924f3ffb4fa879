"""Cross-entropy on masked codes over the visual ids only, never holding more than one chunk of logits (paper section 3.3).

In: hidden states and targets at places of the sequence, a weight for each. Out: the weighted sum, and every place's own loss
(no gradient) for the per-frame report. The gradient is made in the forward pass, chunk by chunk.
"""

import torch
from torch import Tensor

CHUNK = 16_384


def weighted_code_loss(
    hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, weight_M: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """sum(weight * cross-entropy) and the cross-entropy of each place, loss_M (float32, detached).

    head_VD: the head's rows of the visual ids; target_M: codes 0 ... V - 1. For a mean over masked codes give
    weight = mask / number of masked codes over the *whole* batch.
    """
    total, loss_M = _ChunkedCrossEntropy.apply(hidden_MD, head_VD, target_M, weight_M, chunk)
    return total, loss_M


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, weight_M: Tensor, chunk: int):  # type: ignore[no-untyped-def]
        kind = (
            torch.get_autocast_dtype(hidden_MD.device.type)
            if torch.is_autocast_enabled(hidden_MD.device.type)
            else hidden_MD.dtype
        )
        head = head_VD.to(kind)
        wants_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden_MD) if wants_grad else None
        head_grad = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device) if wants_grad else None
        losses = []
        for start in range(0, hidden_MD.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden, target, weight = hidden_MD[part].to(kind), target_M[part], weight_M[part].float()
            logits = (hidden @ head.T).float()
            log_probability = logits.log_softmax(dim=-1)
            losses.append(-log_probability.gather(1, target[:, None])[:, 0])
            if hidden_grad is not None and head_grad is not None:
                slope = log_probability.exp_()  # d loss / d logits = (softmax - one hot) * weight
                slope.scatter_add_(1, target[:, None], slope.new_full((1, 1), -1.0).expand(target.shape[0], 1))
                slope = (slope * weight[:, None]).to(kind)
                hidden_grad[part] = slope @ head
                head_grad += slope.T @ hidden
        loss_M = torch.cat(losses)
        ctx.save_for_backward(hidden_grad, head_grad)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(loss_M)
        return (loss_M * weight_M).sum(), loss_M

    @staticmethod
    def backward(ctx, total_grad: Tensor, _loss_grad: Tensor):  # type: ignore[no-untyped-def]
        hidden_grad, head_grad = ctx.saved_tensors
        return hidden_grad * total_grad, (head_grad * total_grad).to(ctx.head_dtype), None, None, None

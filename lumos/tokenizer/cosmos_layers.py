"""The layers of the Cosmos video tokenizer: features_BTHWC in and out, everything causal in time.

Written from the description in arXiv 2501.03575. Every layer that looks back in time takes the `memory` of a stream, or
None for a whole clip; the first call with an empty memory is the start of a clip. Features are channels last, so that a
convolution over space is one over images, and a convolution over time is one over the image of T rows and H*W columns.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad, scaled_dot_product_attention, silu

from lumos.tokenizer.layers import TIME_KERNEL, Memory, as_images, as_video


class CosmosSpaceConv(nn.Module):
    """3x3 convolution inside every frame. Stride 1: zeros around it; stride 2: one zero to the right and below."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = _empty_kernel(outputs, inputs, 3, 3)
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        images_NCHW = as_images(features_BTHWC)
        if self.stride == 2:
            images_NCHW = pad(images_NCHW, (0, 1, 0, 1))
        convolved_NCHW = conv2d(images_NCHW, self.weight, self.bias, self.stride, padding=2 - self.stride)
        return as_video(convolved_NCHW, features_BTHWC.shape[0])


class CosmosTimeConv(nn.Module):
    """Convolution over time, pixel by pixel, that sees the present and two earlier frames; before the first frame, that frame.

    With stride 2, 1 + 2k frames become 1 + k: the first alone, then two at a time.
    """

    remembers = TIME_KERNEL - 1

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = _empty_kernel(outputs, inputs, TIME_KERNEL, 1)
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        past = None if memory is None else memory.get(self)
        if past is None:
            past = features_BTHWC[:, :1].expand(-1, TIME_KERNEL - 1, -1, -1, -1)
        padded_BTHWC = torch.cat((past, features_BTHWC), dim=1)
        if memory is not None:
            memory[self] = padded_BTHWC[:, self.stride - TIME_KERNEL :].clone()  # a view would keep the whole input alive
        image_BCTP = padded_BTHWC.flatten(2, 3).permute(0, 3, 1, 2)  # a column is a pixel
        convolved_BCTP = conv2d(image_BCTP, self.weight, self.bias, (self.stride, 1))
        return convolved_BCTP.permute(0, 2, 3, 1).unflatten(2, features_BTHWC.shape[2:4])


class SpaceThenTime(nn.Module):
    """A layer inside every frame, then one over time."""

    def __init__(self, space: nn.Module, time: nn.Module) -> None:
        super().__init__()
        self.space, self.time = space, time

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        return self.time(self.space(features_BTHWC), memory)


class CosmosConv(SpaceThenTime):
    """A "factorised" 3x3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(CosmosSpaceConv(inputs, outputs), CosmosTimeConv(outputs, outputs))


class FrameNorm(nn.Module):
    """GroupNorm with one group, frame by frame: a frame's mean and variance over its pixels and channels. Float32 inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        x = features_BTHWC.float()
        variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
        scale = torch.rsqrt(variance + 1e-6) * self.weight
        return torch.addcmul(self.bias - mean * scale, x, scale).to(features_BTHWC.dtype)


class CosmosBlock(nn.Module):
    """norm, SiLU, convolution, norm, SiLU, convolution, plus the input (through a matrix when the width changes)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(inputs), CosmosConv(inputs, outputs)
        self.norm2, self.conv2 = FrameNorm(outputs), CosmosConv(outputs, outputs)
        self.nin_shortcut = nn.Linear(inputs, outputs) if inputs != outputs else None

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = self.conv1(silu(self.norm1(features_BTHWC)), memory)
        x = self.conv2(silu(self.norm2(x)), memory)
        return x + (features_BTHWC if self.nin_shortcut is None else self.nin_shortcut(features_BTHWC))


class SpaceAttention(nn.Module):
    """Every pixel attends to all pixels of its frame, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = FrameNorm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, features_BTHWC: Tensor) -> Tensor:
        x_NSC = self.norm(features_BTHWC).flatten(2, 3).flatten(0, 1)
        query, key, value = (layer(x_NSC)[:, None] for layer in (self.q, self.k, self.v))
        mixed_NSC = scaled_dot_product_attention(query, key, value)[:, 0]
        return features_BTHWC + self.proj_out(mixed_NSC).view(features_BTHWC.shape)


class TimeAttention(nn.Module):
    """Every pixel attends to itself now and in the `window - 1` latent frames before, with one head.

    A stream remembers the normalised inputs x instead of keys and values, half as much: the score q . (K x + b) is
    (K' q) . x plus a number that is the same for all x and that softmax drops, and the mean of V x + c is V mean(x) + c.
    """

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window, self.remembers = window, window - 1
        self.norm = FrameNorm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        new_BTHWC = self.norm(features_BTHWC)
        past = None if memory is None else memory.get(self)
        seen_BTHWC = new_BTHWC if past is None else torch.cat((past, new_BTHWC), dim=1)
        if memory is not None:
            too_old = seen_BTHWC.shape[1] - self.window + 1  # for the next frame
            memory[self] = seen_BTHWC[:, too_old:].clone() if too_old > 0 else seen_BTHWC
        query_BTHWC = self.q(new_BTHWC) @ self.k.weight
        query_BPTC, seen_BPTC = (x.flatten(2, 3).transpose(1, 2) for x in (query_BTHWC.to(seen_BTHWC.dtype), seen_BTHWC))
        mixed_BPTC = scaled_dot_product_attention(query_BPTC, seen_BPTC, seen_BPTC, self._mask(query_BPTC, seen_BPTC))
        mixed_BTHWC = mixed_BPTC.transpose(1, 2).unflatten(2, features_BTHWC.shape[2:4])
        return features_BTHWC + self.proj_out(self.v(mixed_BTHWC))

    def _mask(self, query_BPTC: Tensor, seen_BPTC: Tensor) -> Tensor | None:
        new, seen = query_BPTC.shape[2], seen_BPTC.shape[2]
        if new == 1:
            return None  # a single frame sees all that is remembered
        frame = torch.arange(seen, device=seen_BPTC.device)
        ago = frame[seen - new :, None] - frame
        return (ago >= 0) & (ago < self.window)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the latent resolution."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.block_1 = CosmosBlock(width, width)
        self.attn_1 = SpaceThenTime(SpaceAttention(width), TimeAttention(width, window))
        self.block_2 = CosmosBlock(width, width)

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(features_BTHWC, memory), memory), memory)


class Downsample(nn.Module):
    """Halves height and width (`space`), or time (1 + 2k frames -> 1 + k), or both; each a convolution plus an average.

    A level with neither passes its input on. All three convolutions exist all the same, as in the released weights.
    """

    def __init__(self, width: int, space: bool, time: bool) -> None:
        super().__init__()
        self.space, self.time = space, time
        self.conv1 = CosmosSpaceConv(width, width, stride=2)
        self.conv2 = CosmosTimeConv(width, width, stride=2)
        self.conv3 = nn.Linear(width, width)

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = features_BTHWC
        if not self.space and not self.time:
            return x
        if self.space:
            x = self.conv1(x) + as_video(avg_pool2d(as_images(x), 2), x.shape[0])
        if self.time:
            starts = memory is None or self.conv2 not in memory
            pairs = torch.cat((x[:, :1], x), dim=1) if starts else x
            x = self.conv2(x, memory) + pairs.unflatten(1, (-1, 2)).mean(2)
        return self.conv3(x)


class Upsample(nn.Module):
    """Doubles time (1 + k frames -> 1 + 2k), or height and width (`space`), or both; each by repeating, plus a convolution.

    A level with neither passes its input on. All three convolutions exist all the same, as in the released weights.
    """

    def __init__(self, width: int, space: bool, time: bool) -> None:
        super().__init__()
        self.space, self.time = space, time
        self.conv1 = CosmosTimeConv(width, width)
        self.conv2 = CosmosSpaceConv(width, width)
        self.conv3 = nn.Linear(width, width)

    def forward(self, features_BTHWC: Tensor, memory: Memory) -> Tensor:
        x = features_BTHWC
        if not self.space and not self.time:
            return x
        if self.time:
            starts = memory is None or self.conv1 not in memory
            x = x.repeat_interleave(2, dim=1)[:, 1 if starts else 0 :]
            x = x + self.conv1(x, memory)
        if self.space:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = x + self.conv2(x)
        return self.conv3(x)


def _empty_kernel(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, memory_format=torch.channels_last))

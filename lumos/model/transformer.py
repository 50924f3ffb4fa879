"""The decoder: ids_BL and position_BL3 -> hidden_BLD; logits only where they are asked for (paper section 3.1, Llama form).

RMSNorm, grouped-query attention with QK-norm, rotary positions, SwiGLU, no biases, input embedding and head not tied.
Published sizes are `LUMOS_1B` and `LUMOS_3B`.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, rms_norm, silu

from lumos.config import Count, Range, Scale, Size
from lumos.model.attention import Attend, AttendOf
from lumos.model.cache import Cache, behind
from lumos.model.quantise import multiply, some_rows
from lumos.model.rope import RopeKind, Rotation, axis_of_channel, inverse_frequency, rotate, rotation


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder."""

    vocabulary: Annotated[int, Range(0, 2**20)]  # 0 in presets: decided by the text tokenizer
    layers: Count  # blocks of attention and SwiGLU
    width: Size  # channels of the hidden state
    heads: Count  # query heads
    kv_heads: Count  # key and value heads, shared by the query heads
    head_width: Annotated[int, Range(2, 1024)]  # channels of a head
    ffn: Size  # inner width of SwiGLU
    rope: RopeKind = "mm-rope"  # position code; all but mm-rope are the paper's comparisons
    rope_theta: Scale = 10_000.0  # base of the frequencies
    norm_eps: Scale = 1e-5  # added to the variance in RMSNorm
    # codes have two sub-codes out of so many each, the vocabulary's last rows; 0 in presets: decided by the tokenizer
    sub_codes: Annotated[int, Range(0, 2**16)] = field(default=0, metadata={"later": True})
    # no id sees a later one of its own frame (the paper's comparison)
    causal: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}; change one")
        axis_of_channel(self.rope, self.head_width // 2)  # checks the head width


QK_NORM_EPS = 1e-5  # of the LayerNorm over each head, whatever the checkpoint says of RMSNorm
LUMOS_1B = ModelConfig(vocabulary=129_536, layers=16, width=2048, heads=32, kv_heads=8, head_width=64, ffn=8192)
LUMOS_3B = ModelConfig(vocabulary=129_536, layers=28, width=3072, heads=24, kv_heads=8, head_width=128, ffn=8192)


class Transformer(nn.Module):
    """Parameters and forward pass: `forward` gives normalised hidden states, `logits` a slice of the head on some of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.empty(config.width))
        self.head = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.second = SecondSubCode(config) if config.sub_codes else None
        self.axis_K: Tensor
        self.inverse_frequency_K: Tensor
        self.make_tables(torch.get_default_device())

    def make_tables(self, device: torch.device) -> None:
        """The rotary tables: constants of the config, kept in float32 and out of the weights file."""
        pairs = self.config.head_width // 2
        self.register_buffer("axis_K", torch.tensor(axis_of_channel(self.config.rope, pairs), device=device), persistent=False)
        self.register_buffer("inverse_frequency_K", inverse_frequency(pairs, self.config.rope_theta).to(device), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) matrices, those that write into the residual stream scaled down by depth; norms to 1."""
        for name, parameter in self.named_parameters():
            self.initialise_one(name, parameter, generator)

    def initialise_one(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """`initialise` for a single parameter, given by its name and a tensor of its shape."""
        if parameter.ndim == 1 or "query_norm" in name or "key_norm" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            into_residual = name.endswith(("attention_out", "ffn_down"))
            deviation = 0.02 / (2 * self.config.layers) ** 0.5 if into_residual else 0.02
            nn.init.trunc_normal_(parameter, std=deviation, a=-3 * deviation, b=3 * deviation, generator=generator)

    def forward(self, ids_BL: Tensor, position_BL3: Tensor, attend: Attend, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, hidden_BLD. With a cache, the ids' keys and values go after its `length`."""
        turn = rotation(position_BL3, self.axis_K, self.inverse_frequency_K)
        return self.run(ids_BL, turn, partial(behind, attend, cache, None) if cache else lambda _: attend)

    def run(self, ids_BL: Tensor, turn: Rotation, attend_of: AttendOf, at_BM: Tensor | None = None) -> Tensor:
        """`forward` with the positions' rotation made beforehand, and attention by the number of the layer. at_BM: the only
        places whose hidden states are wanted, hidden_BMD; the last layer works for these alone."""
        x_BLD = self.embed(ids_BL)
        for number, layer in enumerate(self.layers):
            x_BLD = layer(x_BLD, turn, attend_of(number), at_BM if number + 1 == len(self.layers) else None)
        return rms_norm(x_BLD, self.norm.shape, self.norm, self.config.norm_eps)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """A row per id; for the code of two sub-codes the sum of both rows."""
        sub_codes = self.config.sub_codes
        if not sub_codes:
            return embedding(ids_BL, self.embedding)
        first_code = self.config.vocabulary - 2 * sub_codes
        is_code_BL = ids_BL >= first_code
        code_BL = (ids_BL - first_code).clamp(min=0)
        first_BLD = embedding(torch.where(is_code_BL, first_code + code_BL % sub_codes, ids_BL), self.embedding)
        second_BLD = embedding(first_code + sub_codes + code_BL // sub_codes, self.embedding)
        return first_BLD + torch.where(is_code_BL[..., None], second_BLD, 0.0)

    def logits(self, hidden_MD: Tensor, first: int, count: int) -> Tensor:
        """Scores of ids first ... first + count - 1, [..., count]."""
        return multiply(hidden_MD, some_rows(self.head, first, count))


class SecondSubCode(nn.Module):
    """Hidden state and first sub-code of a place -> the hidden state that the head gives the second from: h + swiglu(h, first).

    The two are not independent: drawn side by side they would make codes that no picture has.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.config = config
        self.first = nn.Parameter(torch.empty(config.sub_codes, D))
        self.ffn_gate_up = nn.Parameter(torch.empty(2 * config.ffn, D))
        self.ffn_down = nn.Parameter(torch.empty(D, config.ffn))
        self.norm = nn.Parameter(torch.empty(D))

    def forward(self, hidden_MD: Tensor, first_M: Tensor) -> Tensor:
        first_MD = embedding(first_M, self.first)
        # normed, so that it counts as much as the hidden state from the first step of training on
        known_MD = hidden_MD + rms_norm(first_MD, self.norm.shape, None, self.config.norm_eps)
        normed_MD = rms_norm(known_MD, self.norm.shape, None, self.config.norm_eps)
        gate, up = multiply(normed_MD, self.ffn_gate_up).chunk(2, dim=-1)
        return rms_norm(known_MD + multiply(silu(gate) * up, self.ffn_down), self.norm.shape, self.norm, self.config.norm_eps)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)). Fused matrices: query, key and value; gate and up."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D, K = config.width, config.head_width
        self.attention_norm = nn.Parameter(torch.empty(D))
        self.query_key_value = nn.Parameter(torch.empty((config.heads + 2 * config.kv_heads) * K, D))
        self.query_norm_scale = nn.Parameter(torch.empty(1, K))
        self.query_norm_bias = nn.Parameter(torch.empty(1, K))
        self.key_norm_scale = nn.Parameter(torch.empty(1, K))
        self.key_norm_bias = nn.Parameter(torch.empty(1, K))
        self.attention_out = nn.Parameter(torch.empty(D, config.heads * K))
        self.ffn_norm = nn.Parameter(torch.empty(D))
        self.ffn_gate_up = nn.Parameter(torch.empty(2 * config.ffn, D))
        self.ffn_down = nn.Parameter(torch.empty(D, config.ffn))

    def forward(self, x_BLD: Tensor, turn: Rotation, attend: Attend, at_BM: Tensor | None = None) -> Tensor:
        query, key, value = self.before_attention(x_BLD, turn)
        if at_BM is not None:
            x_BLD, query = x_BLD.take_along_dim(at_BM[..., None], 1), query.take_along_dim(at_BM[:, None, :, None], 2)
        return self.after_attention(x_BLD, attend(query, key, value))

    def before_attention(self, x_BLD: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """query_BNLK, key_BGLK, value_BGLK. What lies before and after attention is compiled and recomputed apart from it.

        All three lie in memory in the order [id, head]: attention's output then does too, and the next matrix reads it as it is.
        """
        heads, groups, K = self.config.heads, self.config.kv_heads, self.config.head_width
        normed_BLD = rms_norm(x_BLD, self.attention_norm.shape, self.attention_norm, self.config.norm_eps)
        mixed_BLNK = multiply(normed_BLD, self.query_key_value).unflatten(-1, (heads + 2 * groups, K))
        query, key, value = mixed_BLNK.split([heads, groups, groups], dim=2)
        query = layer_norm(query, (K,), self.query_norm_scale[0], self.query_norm_bias[0], QK_NORM_EPS)
        key = layer_norm(key, (K,), self.key_norm_scale[0], self.key_norm_bias[0], QK_NORM_EPS)
        # QK-norm runs in float32 under autocast: bring both back to the value's type, which attention works in.
        query, key = rotate(query, turn).to(value.dtype), rotate(key, turn).to(value.dtype)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def after_attention(self, x_BLD: Tensor, out_BNLK: Tensor) -> Tensor:
        x_BLD = x_BLD + multiply(out_BNLK.transpose(1, 2).flatten(2), self.attention_out)
        normed_BLD = rms_norm(x_BLD, self.ffn_norm.shape, self.ffn_norm, self.config.norm_eps)
        gate, up = multiply(normed_BLD, self.ffn_gate_up).chunk(2, dim=-1)
        return x_BLD + multiply(silu(gate) * up, self.ffn_down)

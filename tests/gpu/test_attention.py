"""On the card: FlexAttention and attention by prefixes agree with their dense twin, forward and backward, as closely as the
twin agrees with float32."""

import pytest
import torch
from torch import Tensor

from lumos.model.attention import dense, flex
from lumos.model.prefix import prefix
from lumos.sequence.layout import HEADER, Grid, content_ids, pack, text_batch
from lumos.sequence.vocabulary import small_vocabulary

pytestmark = pytest.mark.gpu


def gradients(attend, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    out = attend(*leaves)
    (out.float() * seen[:, None, :, None]).square().sum().backward()
    return [out.detach() * seen[:, None, :, None], *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kind", ["flex", "prefix"])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 64), (4, 4, 128)])
def test_it_is_at_most_twice_as_far_from_float32_as_the_dense_twin(kind: str, heads: int, kv_heads: int, width: int) -> None:
    device = torch.device("cuda")
    vocabulary = small_vocabulary(100, 50)
    codes = torch.zeros(2, 3, 16, 16, dtype=torch.int64)
    text = text_batch(vocabulary, [list(range(20)), []], 40)
    batch = pack(vocabulary, Grid(16, 16), *text, content_ids(vocabulary, codes), 1, 8)
    block = batch.block_BL.to(device)
    L = block.shape[1]
    seen = (block < 2**30).float()
    generator = torch.Generator(device).manual_seed(0)
    query = torch.randn(2, heads, L, width, device=device, generator=generator)
    key, value = torch.randn(2, 2, kv_heads, L, width, device=device, generator=generator)
    exact = gradients(dense(block, block), query, key, value, seen)
    low = [x.bfloat16() for x in (query, key, value)]
    plain = gradients(dense(block, block), *low, seen.bfloat16())
    quickly = flex(block) if kind == "flex" else prefix((40 - text[1]).tolist(), 40 + HEADER, Grid(16, 16).frame_length, 3)
    fast = gradients(quickly, *low, seen.bfloat16())
    for truth, slow, quick in zip(exact, plain, fast, strict=True):
        allowed = 2 * float((slow.float() - truth).norm() / truth.norm()) + 1e-4
        assert float((quick.float() - truth).norm() / truth.norm()) <= allowed

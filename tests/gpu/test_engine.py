"""On the card: compiled layers, CUDA graphs and mask-free kernels sample as the plain engine does, without waits."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import lumos.diffusion.draw as drawing
import lumos.diffusion.frame_model as frame_model
import lumos.model.attention as attention
from lumos.diffusion.compute import Compute, prepare_model
from lumos.diffusion.frame_model import FrameModel, VideoSpec
from lumos.diffusion.sampler import SamplerConfig, sample_video
from lumos.model.attention import attend_to_all, fastest
from lumos.model.quantise import multiply, to_fp8, to_int8
from lumos.model.transformer import ModelConfig, Transformer
from lumos.sequence.layout import Grid
from lumos.sequence.vocabulary import small_vocabulary

pytestmark = pytest.mark.gpu
VOCABULARY = small_vocabulary(100, 512)
SHAPE = ModelConfig(VOCABULARY.size, layers=3, width=256, heads=4, kv_heads=2, head_width=64, ffn=512)
SPEC = VideoSpec(Grid(8, 12), latent_frames=3, frames=9, fps=8, window=3, latest=3)
PROMPTS = [[9], [1, 2, 3], [4, 5, 6, 7, 8]]
SETTINGS = SamplerConfig(steps=5)


def model_of(dtype: torch.dtype) -> Transformer:
    with torch.device("cuda"):
        model = Transformer(SHAPE)
    model.initialise(torch.Generator("cuda").manual_seed(0))
    model = model.to(dtype).eval().requires_grad_(False)
    model.make_tables(torch.device("cuda"))
    return model


def frames_of(model: Transformer, compute: Compute, compiled: bool = False) -> Iterator[Tensor]:
    made = FrameModel(model, VOCABULARY, SPEC, PROMPTS, [0, 1, 2], SETTINGS, compute, compiled)
    return sample_video(made, SETTINGS, torch.zeros(3, 0, 96, dtype=torch.int64, device="cuda"))


def hidden_states(compute: Compute, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What every pass of two frames finds, the codes being forced to be the same in every run."""
    model, found, guess = model_of(dtype), [], drawing.draw_codes

    def forced(hidden_RMD: Tensor, head_VD: Tensor, *rest: object) -> object:
        found.append(hidden_RMD.float().clone())
        places = torch.arange(hidden_RMD.shape[1], device="cuda")
        drawn = guess(hidden_RMD, head_VD, *rest)  # type: ignore[arg-type]
        return drawn._replace(
            code_BM=places.expand_as(drawn.code_BM) % 512, log_probability_BM=places.float().expand(drawn.code_BM.shape)
        )

    monkeypatch.setattr(drawing, "draw_codes", forced)
    monkeypatch.setattr(frame_model, "FEW_LOGITS", 0)  # a replayed draw calls no Python
    with torch.inference_mode():
        compiled = prepare_model(model, compute, torch.device("cuda"))
        frames = frames_of(model, compute, compiled)
        next(frames)
        next(frames)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    "compute", [Compute(compile=False, graphs=True), Compute(compile=True, graphs=False), Compute(compile=True, graphs=True)]
)
def test_a_fast_engine_is_at_most_twice_as_far_from_float32(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Compute(compile=False, graphs=False)
    exact = hidden_states(plain, torch.float32, monkeypatch)
    slow = hidden_states(plain, torch.bfloat16, monkeypatch)
    fast = hidden_states(compute, torch.bfloat16, monkeypatch)
    assert len(exact) == len(slow) == len(fast) == 10
    for truth, one, other in zip(exact, slow, fast, strict=True):
        allowed = 2 * float((one - truth).norm() / truth.norm()) + 1e-4
        assert float((other - truth).norm() / truth.norm()) <= allowed


@pytest.mark.parametrize("graphs", [False, True])
def test_sampling_a_frame_never_waits_for_the_card(graphs: bool) -> None:
    compute = Compute(compile=False, graphs=graphs)
    with torch.inference_mode():
        frames = frames_of(model_of(torch.bfloat16), compute)
        next(frames)
        try:
            torch.cuda.set_sync_debug_mode("error")
            next(frames)  # the first frame becomes history, the second is sampled
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_replayed_draws_of_all_places_draw_what_draws_of_a_few_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a frame's last pass, replayed, writes the history that one launched anew would: the second frame depends on it."""
    model, found = model_of(torch.float32), []
    for most, graphs in ((0, False), (0, True), (frame_model.FEW_LOGITS, True), (frame_model.FEW_LOGITS, True)):
        monkeypatch.setattr(frame_model, "FEW_LOGITS", most)
        with torch.inference_mode():
            found.append(torch.stack(list(frames_of(model, Compute(compile=False, graphs=graphs)))))
    assert all(float((codes == found[0]).float().mean()) > 0.99 for codes in found)


def test_graphs_of_many_videos_leave_no_memory_behind() -> None:
    model, reserved = model_of(torch.bfloat16), []
    with torch.inference_mode():
        for _ in range(8):
            for _ in frames_of(model, Compute(compile=False, graphs=True)):
                pass
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[2]


@pytest.mark.parametrize(("make", "most"), [(to_fp8, 0.06), (to_int8, 0.015)])
def test_products_in_8_bits_are_close(make, most: float) -> None:  # type: ignore[no-untyped-def]
    x, weight = torch.randn(2, 37, 256, device="cuda").bfloat16(), torch.randn(512, 256, device="cuda").bfloat16()
    exact, found = multiply(x.float(), weight.float()), multiply(x, make(weight))
    assert found.dtype == x.dtype and 0 < float((found.float() - exact).norm() / exact.norm()) < most


@pytest.mark.parametrize(("heads", "groups", "width"), [(32, 8, 64), (24, 8, 128)])
def test_the_kernel_tried_first_does_grouped_queries_over_part_of_a_cache(heads: int, groups: int, width: int) -> None:
    query = torch.randn(2, heads, 300, width, device="cuda").bfloat16()
    cache = torch.randn(2, groups, 1000, width, device="cuda").bfloat16()
    with fastest(torch.device("cuda")):
        found = attend_to_all([0, 62])(query, cache[:, :, :900], cache[:, :, :900])
    exact = attend_to_all([0, 62])(query.float(), cache[:, :, :900].float(), cache[:, :, :900].float())
    assert float((found.float() - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("captured", [False, True])
def test_rows_side_by_side_give_what_rows_in_turn_do(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attend, slow = attend_to_all([0, 62, 100]), torch.randn(8192, 8192, device="cuda")
    given = [torch.randn(3, heads, ids, 128, device="cuda").bfloat16() for heads, ids in ((24, 1021), (8, 3000), (8, 3000))]

    def run() -> Tensor:
        query, key, value = (each + (slow @ slow)[0, 0] * 0 for each in given)  # they are late, and what reads them must wait
        return attend(query, key, value) * 2

    found = []
    for sizes in (range(0), range(24 * 1021, 24 * 1021 + 1)):
        monkeypatch.setattr(attention, "SIDE_BY_SIDE", sizes)
        run()
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                out = run()
            graph.replay()
        else:
            out = run()
        found.append(out.clone())
    assert torch.equal(*found)

"""The Cosmos tokenizer: parts as described, the same in a stream as in one piece, released archives become weights folders."""

import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv3d, pad

from lumos.published.cosmos import from_released, import_cosmos, released_name
from lumos.tokenizer.cosmos import DV4X8X8, CosmosConfig
from lumos.tokenizer.cosmos_layers import Downsample, Upsample
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer, save_tokenizer
from tests.tokenizer.small import COSMOS, clip, made, randomise, some_codes

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_published_size_and_names() -> None:
    with torch.device("meta"):
        tokenizer = VideoTokenizer(DV4X8X8)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 112_472_182
    assert tokenizer.codebook_size == 64_000 and (tokenizer.temporal, tokenizer.spatial) == (4, 8)
    recorded = json.loads((GOLDEN / "cosmos_dv4x8x8.json").read_text())["parameters"]
    numbers = {released_name(name): parameter.numel() for name, parameter in tokenizer.named_parameters()}
    assert numbers == {name: torch.Size(shape).numel() for name, shape in recorded.items()}


@pytest.mark.parametrize("config", [CosmosConfig(temporal=8), CosmosConfig(temporal=8, spatial=16)])
def test_other_compressions_have_the_same_parameters(config: CosmosConfig) -> None:
    with torch.device("meta"):
        ours, published = VideoTokenizer(config).state_dict(), VideoTokenizer(DV4X8X8).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in published.items()}


def test_a_streams_memory_stops_growing_at_the_window() -> None:
    tokenizer = made(replace(COSMOS, window=3))
    codes = some_codes(tokenizer, 8)
    state, sizes, parts = tokenizer.start_stream(), [], []
    for t in range(8):
        parts.append(tokenizer.decode_next(codes[:, t], state))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in state.memory.values()))
    growth = [after - before for before, after in itertools.pairwise(sizes)]
    assert growth == [2 * 2 * 3 * 16 * 4] + [0] * 6  # one more frame of B, H, W, C float32 numbers, then no more
    windowed, unbounded = torch.cat(parts, dim=2), made(COSMOS).decode(codes)
    for at_once in (4, 8):
        torch.testing.assert_close(tokenizer.decode(codes, at_once), windowed, rtol=0, atol=1e-5)
    torch.testing.assert_close(unbounded[:, :, :9], windowed[:, :, :9], rtol=0, atol=1e-5)
    assert (unbounded - windowed).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("space, time", [(True, False), (False, True), (True, True), (False, False)])
def test_downsampling_is_as_described(space: bool, time: bool, frames: int) -> None:
    layer = randomise(Downsample(4, space, time))
    x = video = torch.randn(2, 4, frames, 6, 8, generator=torch.Generator().manual_seed(0))
    if space:
        padded = pad(x, (0, 1, 0, 1))
        average = torch.stack([avg_pool2d(padded[:, :, t], 2, stride=2) for t in range(frames)], dim=2)
        x = conv3d(padded, layer.conv1.weight[:, :, None], layer.conv1.bias, (1, 2, 2)) + average
    if time:
        twice = torch.cat((x[:, :, :1], x), dim=2)
        causal = torch.cat((twice[:, :, :1], twice), dim=2)
        x = (
            conv3d(causal, layer.conv2.weight[..., None], layer.conv2.bias, (2, 1, 1))
            + (twice[:, :, ::2] + twice[:, :, 1::2]) / 2
        )
    if space or time:
        x = conv3d(x, layer.conv3.weight[..., None, None, None], layer.conv3.bias)
    torch.testing.assert_close(layer(video.permute(0, 2, 3, 4, 1), None).permute(0, 4, 1, 2, 3), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("space, time", [(True, False), (False, True), (True, True), (False, False)])
def test_upsampling_is_as_described(space: bool, time: bool, frames: int) -> None:
    layer = randomise(Upsample(4, space, time))
    x = video = torch.randn(2, 4, frames, 3, 2, generator=torch.Generator().manual_seed(0))
    if time:
        x = x.repeat_interleave(2, dim=2)[:, :, 1:] if frames > 1 else x
        causal = torch.cat((x[:, :, :1], x[:, :, :1], x), dim=2)
        x = x + conv3d(causal, layer.conv1.weight[..., None], layer.conv1.bias)
    if space:
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        x = x + conv3d(pad(x, (1, 1, 1, 1)), layer.conv2.weight[:, :, None], layer.conv2.bias)
    if space or time:
        x = conv3d(x, layer.conv3.weight[..., None, None, None], layer.conv3.bias)
    torch.testing.assert_close(layer(video.permute(0, 2, 3, 4, 1), None).permute(0, 4, 1, 2, 3), x, rtol=0, atol=1e-5)


def test_bf16_is_close_to_float32() -> None:
    tokenizer = made(COSMOS)
    codes, pixels = some_codes(tokenizer, 3), clip(tokenizer, 3)
    exact, exact_codes = tokenizer.decode(codes), tokenizer.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        auto, auto_codes = tokenizer.decode(codes), tokenizer.encode(pixels)
    halved = tokenizer.to(torch.bfloat16)
    for ours, ours_codes in ((auto, auto_codes), (halved.decode(codes), halved.encode(pixels))):
        assert ours.dtype == torch.float32
        assert 0 < (ours - exact).abs().mean() < 0.05
        assert (ours_codes == exact_codes).float().mean() > 0.5
    state = halved.start_stream()
    halved.decode_next(codes[:, 0], state)
    assert {tensor.dtype for tensor in state.memory.values()} == {torch.bfloat16}


def test_a_wrong_config_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "a", made(COSMOS))
    path = tmp_path / "a" / "config.json"
    text = path.read_text()
    for old, new, words in (
        ('"blocks": 1', '"blocks": 2', "lacks encoder.down.0.block.1"),
        ('"blocks": 1', '"blocks": 100000', "blocks must be 1 to 1024, got 100000"),
        ('"window": 64', '"window": 0', "window must be 1 to"),
        ('"spatial": 8', '"spatial": 12', r"config.json: spatial compression must be one of \[4, 8, 16\]"),
        ('"temporal": 4', '"temporal": 2', r"temporal compression must be one of \[4, 8, 16\]"),
        ('"spatial": 8', '"sides": 8', "unknown field 'sides'"),
        ('"cosmos": {', '"levels": [5], "cosmos": {', "unknown field 'cosmos'"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=words):
            load_tokenizer(tmp_path / "a")


class Branch(nn.Module):
    """A module with children and parameters of any name."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(path: Path, tensors: dict[str, Tensor]) -> None:
    top = Branch()
    for name, tensor in tensors.items():
        *parts, last = name.split(".")
        module: nn.Module = top
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, Branch())
            module = module.get_submodule(part)
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates making such archives
        torch.jit.save(torch.jit.script(top), path)


def released_tensors(tokenizer: VideoTokenizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in tokenizer.state_dict().items():
        kernel = "time" if tensor.ndim == 4 and tensor.shape[3] == 1 else "other"
        if tensor.ndim == 4:
            tensor = tensor[..., None] if kernel == "time" else tensor[:, :, None]
        elif tensor.ndim == 2:
            tensor = tensor[..., None, None, None]
        tensors[released_name(name)] = tensor.contiguous()
    return tensors


ENCODER = ("encoder.", "quant_conv.", "quantizer.")


@pytest.fixture(scope="module")
def source() -> VideoTokenizer:
    return made(COSMOS)


@pytest.fixture(scope="module")
def archives(source: VideoTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encoder.jit (float32) and decoder.jit (bf16), constants among their tensors."""
    folder = tmp_path_factory.mktemp("cosmos")
    tensors = released_tensors(source) | {"quantizer._levels": torch.tensor([8, 5, 5]), "encoder.patcher._range": torch.arange(2)}
    save_archive(folder / "encoder.jit", {name: tensor for name, tensor in tensors.items() if name.startswith(ENCODER)})
    others = {name: tensor.bfloat16() for name, tensor in tensors.items() if not name.startswith(ENCODER)}
    save_archive(folder / "decoder.jit", others)
    return folder


def test_importing_encoder_and_decoder(source: VideoTokenizer, archives: Path, tmp_path: Path) -> None:
    import_cosmos(archives, tmp_path / "out", COSMOS)
    loaded = load_tokenizer(tmp_path / "out")
    pixels, codes = clip(source, 3), some_codes(source, 3)
    assert torch.equal(loaded.encode(pixels), source.encode(pixels))
    expected = released_tensors(source)
    for name, tensor in released_tensors(loaded).items():
        rounded = expected[name] if name.startswith(ENCODER) else expected[name].bfloat16().float()
        assert torch.equal(tensor, rounded), name
    assert (loaded.decode(codes) - source.decode(codes)).abs().mean() < 0.05


def test_importing_the_autoencoder(source: VideoTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_archive(folder / "autoencoder.jit", released_tensors(source))
    import_cosmos(folder, tmp_path / "out", COSMOS)
    codes = some_codes(source, 2)
    assert torch.equal(load_tokenizer(tmp_path / "out").decode(codes), source.decode(codes))


def test_a_folder_named_after_another_compression_is_refused(archives: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Cosmos-Tokenizer-DV8x16x16"
    folder.symlink_to(archives)
    with pytest.raises(ValueError, match="must hold a tokenizer DV4x8x8 by the config, got DV8x16x16 by its name"):
        import_cosmos(folder, tmp_path / "out", COSMOS)
    import_cosmos(folder, tmp_path / "out", replace(COSMOS, temporal=8, spatial=16))


def test_incomplete_folders_and_other_networks_are_refused_and_leave_nothing(archives: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    with pytest.raises(FileNotFoundError, match="lacks encoder.jit and decoder.jit; download it"):
        import_cosmos(folder, tmp_path / "out", COSMOS)
    folder.mkdir()
    content = (archives / "encoder.jit").read_bytes()
    (folder / "encoder.jit").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"but lacks decoder.jit; download it"):
        import_cosmos(folder, tmp_path / "out", COSMOS)
    (folder / "decoder.jit").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"decoder.jit is truncated"):
        import_cosmos(folder, tmp_path / "out", COSMOS)
    (folder / "decoder.jit").write_bytes(content)
    with pytest.raises(ValueError, match="lacks .*decoder"):
        import_cosmos(folder, tmp_path / "out", COSMOS)
    with pytest.raises(ValueError, match=r"conv_in.0.conv3d.weight must have shape \[16, 192, 1, 3, 3\]"):
        import_cosmos(archives, tmp_path / "out", replace(COSMOS, channels=16))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_only_unused_convolutions_may_be_missing(source: VideoTokenizer) -> None:
    tensors = released_tensors(source)
    encoder = ("encoder.down.1.downsample", "encoder.down.0.downsample.conv2")
    decoder = ("decoder.up.1.upsample", "decoder.up.2.upsample.conv1")
    unused = [name for name in tensors if name.startswith((*encoder, *decoder))]
    assert len(unused) == 16
    for name in unused:
        del tensors[name]
    loaded = VideoTokenizer(COSMOS)
    loaded.load_state_dict(from_released(COSMOS, tensors, "test"))
    codes, pixels = some_codes(source, 3), clip(source, 3)
    assert torch.equal(loaded.decode(codes), source.decode(codes)) and torch.equal(loaded.encode(pixels), source.encode(pixels))
    with pytest.raises(ValueError, match=r"lacks encoder.down.0.downsample.conv2.conv3d.weight"):
        from_released(replace(COSMOS, temporal=8), tensors, "test")


def test_weights_that_are_no_real_numbers_are_refused(source: VideoTokenizer) -> None:
    tensors = released_tensors(source)
    tensors["quant_conv.conv3d.bias"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="quant_conv.conv3d.bias must hold floating point numbers .* got torch.int64"):
        from_released(COSMOS, tensors, "test")

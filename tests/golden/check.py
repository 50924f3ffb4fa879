"""Compare lumos with numbers recorded from the released code: `python tests/golden/check.py lumos FILE.safetensors FILE.json`.

`lumos` stands for the model, its sequences and its sampler's calls, `cosmos` for the visual tokenizer. Works for any file of
that form (other sizes, seeds, aspect ratios). Weights are not stored but made by a formula from their names. Prints the
maximum error of every comparison; exits 1 past tolerance.
"""

import json
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumos.config import read_config
from lumos.diffusion.loss import weighted_code_loss
from lumos.diffusion.masking import released_history_mask
from lumos.model.attention import dense
from lumos.model.cache import Cache
from lumos.model.rope import rotation
from lumos.model.transformer import ModelConfig, Transformer
from lumos.published.cosmos import from_released
from lumos.published.official import from_official
from lumos.sequence.layout import Grid, PackedBatch, content_ids, content_of, pack, unpack
from lumos.sequence.vocabulary import LUMOS
from lumos.tokenizer.cosmos import DV4X8X8, CosmosConfig
from lumos.tokenizer.layers import patch
from lumos.tokenizer.model import VideoTokenizer

TOLERANCE = 1e-4


class Report:
    """Prints every comparison as it comes, and counts those past tolerance. Whole numbers must be equal."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        is_close = theirs.is_floating_point()
        unit, allowed = ("relative error", TOLERANCE) if is_close else ("different", 0.0)
        if ours.shape != theirs.shape:
            what, error = f"{what} (shape {tuple(ours.shape)} for {tuple(theirs.shape)})", float("inf")
        elif is_close:
            error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-12))
        else:
            error = float((ours.long() != theirs.long()).sum())
        good = error <= allowed
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {what:44} max {unit} {error:.2e} (allowed {allowed:g})")


def formula_weight(name: str, shape: list[int]) -> Tensor:
    """The recorded code's weights: a hash of (element number + crc32 of the name), scaled by the kind of parameter."""
    count = int(numpy.prod(shape))
    x = numpy.arange(count, dtype=numpy.uint32) + numpy.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        x ^= x >> numpy.uint32(16)
        x *= numpy.uint32(0x45D9F3B)
    x ^= x >> numpy.uint32(16)
    u = torch.from_numpy((x.astype(numpy.float64) / 2**31 - 1).astype(numpy.float32)).view(shape)
    if "norm" in name or name.endswith("bias"):
        return 0.1 * u + name.endswith("weight")
    return u if "embed_tokens" in name else u * (3.0 / float(numpy.prod(shape[1:]))) ** 0.5


def build(info: dict[str, Any]) -> Transformer:
    sizes = {"vocabulary": "vocab_size", "layers": "layers", "width": "hidden_size", "heads": "heads", "kv_heads": "kv_heads"}
    sizes |= {"head_width": "head_dim", "ffn": "intermediate_size", "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps"}
    config = ModelConfig(**{ours: info[theirs] for ours, theirs in sizes.items()})
    model = Transformer(config)
    model.load_state_dict(dict(from_official(config, lambda name: formula_weight(name, info["parameters"][name]))))
    return model.eval()


def packed(text: list[int], codes_THW: Tensor, seconds: int, fps: int, tail: bool = False) -> PackedBatch:
    """A sample built by our own layout from its text, codes and header."""
    grid, content = Grid(*codes_THW.shape[1:]), content_ids(LUMOS, codes_THW[None])
    return pack(LUMOS, grid, torch.tensor([text]), torch.tensor([len(text)]), content, seconds, fps, tail=tail)


@torch.no_grad()
def check_lumos(golden: dict[str, Tensor], info: dict[str, Any]) -> int:
    compare, model = Report(), build(info)
    text, codes_THW, seconds, fps = unpack(LUMOS, golden["input_ids"].tolist())
    batch, grid = packed([LUMOS.begin, *text, LUMOS.separator], codes_THW, seconds, fps, tail=True), Grid(*codes_THW.shape[1:])
    compare("layout: ids", batch.ids_BL[0], golden["input_ids"])
    for axis, name in enumerate("thw"):
        compare(f"position {name}", batch.position_BL3[0, :, axis], golden[f"position_{name}"])
    compare("attention rule", batch.block_BL[0][None, :] <= batch.block_BL[0][:, None], golden["allowed"])
    turn = rotation(batch.position_BL3, model.axis_K, model.inverse_frequency_K)
    pairs = len(model.axis_K)
    for name, ours_LK in (("cos", turn.cos_BLK[0, :, pairs:]), ("sin", turn.sin_BLK[0, :, pairs:])):
        theirs = golden[f"rope_{name}"]
        compare(f"rotation {name}", ours_LK.repeat(1, theirs.shape[-1] // ours_LK.shape[-1]), theirs)
    ratio = info["history_mask_ratio"]
    hidden_places = released_history_mask(1, grid.rows, grid.columns + 1, ratio)
    compare("history mask", hidden_places.flatten().nonzero()[:, 0], golden[f"history_mask_{ratio}"])

    masked_ids, slots, frames = batch.ids_BL.clone(), len(text) + 2, info["latent_frames"]
    tube = golden["tube_mask"].view(grid.rows, grid.columns + 1)
    content_of(grid, masked_ids, slots, frames).masked_fill_(tube, LUMOS.mask)
    compare("masked ids", masked_ids[0], golden["masked_ids"])
    hidden = model(masked_ids, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
    logits = model.logits(hidden[0], LUMOS.first_code, LUMOS.codes)
    compare("logits", logits[:, golden["visual_logits_columns"].long()], golden["visual_logits"])
    compare("log-sum-exp", logits.logsumexp(-1), golden["visual_logsumexp"])
    is_code = torch.arange(grid.columns + 1).expand_as(tube) < grid.columns
    places = content_of(grid, torch.arange(masked_ids.shape[1])[None], slots, frames)[0][:, tube & is_code].flatten()
    target, weight = batch.ids_BL[0, places] - LUMOS.first_code, torch.full(places.shape, 1 / places.numel())
    head = model.head[LUMOS.first_code :][: LUMOS.codes]
    compare("mean masked loss", weighted_code_loss(hidden[0, places], head, target, weight)[0][None], golden["mean_masked_ce"])
    for name in ("t2v", "i2v"):
        check_trace(name, model, golden, compare)
    return compare.failed


def check_trace(name: str, model: Transformer, golden: dict[str, Tensor], compare: Report) -> None:
    """Feed every recorded call's ids through our cache; conditional and unconditional calls alternate, each with its own."""
    calls = [key.removesuffix("_ids") for key in sorted(golden) if key.startswith(f"{name}_call") and key.endswith("_ids")]
    if not calls:
        return
    samples = [whole_sequence(golden[f"{call}_ids"].tolist(), golden[f"{name}_tokens"].numel() + 64) for call in calls[:2]]
    sizes = (model.config.layers, 1, model.config.kv_heads)
    where = (model.config.head_width, torch.device("cpu"), torch.float32)
    caches = [Cache(*sizes, sample.ids_BL.shape[1], *where) for sample in samples]
    found: list[Tensor] = []
    for number, call in enumerate(calls):
        sample, cache, ids = samples[number % 2], caches[number % 2], golden[f"{call}_ids"].long()[None]
        cache.length = int(golden[f"{call}_cache_before"])
        at = slice(cache.length, cache.length + ids.shape[1])
        attend = dense(sample.block_BL[:, at], sample.block_BL[:, : at.stop])
        hidden = model(ids, sample.position_BL3[:, at], attend, cache)
        found.append(model.logits(hidden[0], LUMOS.first_code, LUMOS.codes))
    columns, logits = golden["visual_logits_columns"].long(), torch.cat(found)
    compare(f"{name} trace: logits of {len(calls)} calls", logits[:, columns], torch.cat([golden[f"{c}_logits"] for c in calls]))
    compare(f"{name} trace: log-sum-exp", logits.logsumexp(-1), torch.cat([golden[f"{call}_logsumexp"] for call in calls]))


def whole_sequence(row: list[int], capacity: int) -> PackedBatch:
    """Positions and blocks of a whole sequence of at least so many ids, known from the first call's prompt and header."""
    start = row.index(LUMOS.video_start)
    seconds, fps = (row[start + i] - LUMOS.number_zero for i in (1, 2))
    rows, columns = ((row[start + 4 + i] - LUMOS.number_zero) * 4 for i in (0, 1))
    frames = -(-capacity // Grid(rows, columns).frame_length)
    return packed(row[:start], torch.zeros(frames, rows, columns, dtype=torch.int64), seconds, fps)


COSMOS_FIXED = {"in_channels": 3, "out_channels": 3, "patch_size": 4, "patch_method": "haar", "quantizer": "FSQ"}
COSMOS_FIXED |= {"num_groups": 1, "z_factor": 1, "encoder": "FACTORIZED", "decoder": "FACTORIZED"}


def build_cosmos(info: dict[str, Any]) -> VideoTokenizer:
    recorded = info["config"]
    for name, value in COSMOS_FIXED.items():
        if recorded.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, all that lumos can do, got {recorded[name]!r}; use another recording")
    names = {"temporal": "temporal_compression", "spatial": "spatial_compression", "levels": "levels", "channels": "channels"}
    names |= {"multipliers": "channels_mult", "blocks": "num_res_blocks", "latent_channels": "z_channels"}
    config = read_config(CosmosConfig, asdict(DV4X8X8) | {ours: recorded[theirs] for ours, theirs in names.items()}, "config")
    tokenizer = VideoTokenizer(config)
    weights = {name: formula_weight(name, shape) for name, shape in info["parameters"].items()}
    tokenizer.load_state_dict(from_released(config, weights, "the recording"))
    return tokenizer.eval()


@torch.no_grad()
def check_cosmos(golden: dict[str, Tensor], info: dict[str, Any]) -> int:
    """Whole clips against the recording, then the same clips again, one latent frame at a time."""
    compare, tokenizer = Report(), build_cosmos(info)
    video = golden["video"]
    compare("patched", channels_first(patch(video, first=True)), golden["patched"])
    latents = tokenizer.latents(video, tokenizer.start_stream())
    compare("pre-quantised", channels_first(latents), golden["pre_quantized"])
    values, indices = tokenizer.fsq(latents)
    compare("indices", indices, golden["indices"])
    compare("codes", channels_first(values), golden["codes"])
    compare("indices, encoded as a stream", tokenizer.encode(video, at_once=1), golden["indices"])

    decoded_values = tokenizer.fsq.values(golden["decode_indices"].long())
    compare("codes to decode", channels_first(decoded_values), golden["decode_codes"])
    compare("decoded", tokenizer.pixels(decoded_values, tokenizer.start_stream()), golden["decoded"])
    state = tokenizer.start_stream()
    parts = [tokenizer.pixels(frame, state) for frame in decoded_values.split(1, dim=1)]
    compare("decoded as a stream", torch.cat(parts, dim=2), golden["decoded"])
    return compare.failed


def channels_first(features_BTHWC: Tensor) -> Tensor:
    return features_BTHWC.permute(0, 4, 1, 2, 3)


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] not in CHECKS:
        print(f"usage: check.py {'|'.join(CHECKS)} FILE.safetensors FILE.json", file=sys.stderr)
        return 2
    golden, info = load_file(arguments[1]), json.loads(Path(arguments[2]).read_text())
    failed = CHECKS[arguments[0]](golden, info)
    print("every comparison within tolerance" if not failed else f"{failed} comparisons past tolerance")
    return 1 if failed else 0


CHECKS = {"lumos": check_lumos, "cosmos": check_cosmos}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

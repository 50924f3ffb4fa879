"""Compare lumos with numbers recorded from the released code: `python tests/golden/check.py lumos FILE.safetensors FILE.json`.

`lumos` stands for the model, its sequences and its sampler's calls, `cosmos` for the visual tokenizer. Works for any file of
that form (other sizes, seeds, aspect ratios). Weights are not stored but made by a formula from their names. Prints the
maximum error of every comparison; exits 1 past tolerance.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

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
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.layers import patch
from lumos.tokenizer.model import VideoTokenizer

TOLERANCE = 1e-4


class Report:
    """Collects (what, error, tolerance) and prints them as they come."""

    def __init__(self) -> None:
        self.failed = 0

    def exact(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        different = (ours.shape != theirs.shape) or int((ours.long() != theirs.long()).sum())
        self._line(what, float(different), 0.0, "different")

    def close(self, what: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
        if ours.shape != theirs.shape:
            self._line(f"{what} (shape {tuple(ours.shape)} for {tuple(theirs.shape)})", float("inf"), tolerance, "relative error")
            return
        error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-12)
        self._line(what, float(error), tolerance, "relative error")

    def _line(self, what: str, error: float, tolerance: float, unit: str) -> None:
        good = error <= tolerance
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {what:44} max {unit} {error:.2e} (allowed {tolerance:g})")


def formula_weight(name: str, shape: list[int], cosmos: bool = False) -> Tensor:
    """The recorded code's weights: a hash of (element number + crc32 of the name), scaled by the kind of parameter."""
    count = int(numpy.prod(shape))
    x = numpy.arange(count, dtype=numpy.uint32) + numpy.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        x ^= x >> numpy.uint32(16)
        x *= numpy.uint32(0x45D9F3B)
    x ^= x >> numpy.uint32(16)
    u = torch.from_numpy((x.astype(numpy.float64) / 2**31 - 1).astype(numpy.float32)).view(shape)
    if cosmos:
        if ".norm" in name and name.endswith("weight"):
            return 1 + 0.1 * u
        if ".norm" in name or name.endswith("bias"):
            return 0.1 * u
        return u * (3.0 / float(numpy.prod(shape[1:]))) ** 0.5
    if "norm" in name:
        return 1 + 0.1 * u if name.endswith("weight") else 0.1 * u
    return u if "embed_tokens" in name else u * (3.0 / shape[-1]) ** 0.5


def build(info: dict[str, Any]) -> Transformer:
    config = ModelConfig(
        vocabulary=info["vocab_size"],
        layers=info["layers"],
        width=info["hidden_size"],
        heads=info["heads"],
        kv_heads=info["kv_heads"],
        head_width=info["head_dim"],
        ffn=info["intermediate_size"],
        rope_theta=info["rope_theta"],
        norm_eps=info["rms_norm_eps"],
    )
    model = Transformer(config)
    weights = dict(from_official(config, lambda name: formula_weight(name, info["parameters"][name])))
    model.load_state_dict(weights, strict=True)
    return model.eval()


def repack(ids: Tensor, info: dict[str, Any]) -> tuple[PackedBatch, Grid]:
    """The same sample built by our own layout from its text, codes and header."""
    text, codes_THW, seconds, fps = unpack(LUMOS, ids.tolist())
    grid = Grid(rows=codes_THW.shape[1], columns=codes_THW.shape[2])
    row = [LUMOS.begin, *text, LUMOS.separator]
    batch = pack(
        LUMOS, grid, torch.tensor([row]), torch.tensor([len(row)]), content_ids(LUMOS, codes_THW[None]), seconds, fps, tail=True
    )
    return batch, grid


@torch.no_grad()
def check_lumos(golden: dict[str, Tensor], info: dict[str, Any]) -> int:
    report, model = Report(), build(info)
    batch, grid = repack(golden["input_ids"], info)
    text_length = int((golden["input_ids"] == LUMOS.video_start).nonzero()[0])
    frames = info["latent_frames"]
    report.exact("layout: ids", batch.ids_BL[0], golden["input_ids"])
    for axis, name in enumerate("thw"):
        report.exact(f"position {name}", batch.position_BL3[0, :, axis], golden[f"position_{name}"])
    report.exact("attention rule", batch.block_BL[0][None, :] <= batch.block_BL[0][:, None], golden["allowed"])
    turn = rotation(batch.position_BL3, model.axis_K, model.inverse_frequency_K)
    report.close(
        "rotation cos", turn.cos_BLK[0].repeat(1, golden["rope_cos"].shape[-1] // turn.cos_BLK.shape[-1]), golden["rope_cos"]
    )
    report.close(
        "rotation sin", turn.sin_BLK[0].repeat(1, golden["rope_sin"].shape[-1] // turn.sin_BLK.shape[-1]), golden["rope_sin"]
    )
    hidden_places = released_history_mask(1, grid.rows, grid.columns + 1, info["history_mask_ratio"], torch.device("cpu"))
    report.exact("history mask", hidden_places.flatten().nonzero()[:, 0], golden[f"history_mask_{info['history_mask_ratio']}"])

    masked_ids = batch.ids_BL.clone()
    content = content_of(grid, masked_ids, text_length, frames)
    tube = golden["tube_mask"].view(grid.rows, grid.columns + 1)
    content.masked_fill_(tube, LUMOS.mask)
    report.exact("masked ids", masked_ids[0], golden["masked_ids"])
    hidden = model(masked_ids, batch.position_BL3, dense(batch.block_BL, batch.block_BL))
    logits = model.logits(hidden[0], LUMOS.first_code, LUMOS.codes)
    columns = golden["visual_logits_columns"].long()
    report.close("logits", logits[:, columns], golden["visual_logits"])
    report.close("log-sum-exp", logits.logsumexp(-1), golden["visual_logsumexp"])
    is_code = torch.zeros_like(tube).index_fill_(1, torch.arange(grid.columns), True)
    places = content_of(grid, torch.arange(masked_ids.shape[1])[None], text_length, frames)[0]
    target_places = places[:, tube & is_code].flatten()
    target = batch.ids_BL[0, target_places] - LUMOS.first_code
    weight = torch.full(target.shape, 1 / target.numel())
    loss, _ = weighted_code_loss(
        hidden[0, target_places], model.head[LUMOS.first_code :][: LUMOS.codes], target, weight, chunk=100
    )
    report.close("mean masked loss", loss[None], golden["mean_masked_ce"])

    for name in ("t2v", "i2v"):
        check_trace(name, model, golden, report)
    return report.failed


def check_trace(name: str, model: Transformer, golden: dict[str, Tensor], report: Report) -> None:
    """Feed every recorded call's ids through our cache; conditional and unconditional calls alternate, each with its own."""
    calls = sum(key.startswith(f"{name}_call") and key.endswith("_ids") for key in golden)
    if not calls:
        return
    config, columns = model.config, golden["visual_logits_columns"].long()
    worst: list[tuple[Tensor, Tensor]] = []
    sums: list[tuple[Tensor, Tensor]] = []
    samples = [Sample(config, golden[f"{name}_call{branch:02}_ids"], golden[f"{name}_tokens"].numel() + 64) for branch in (0, 1)]
    for call in range(calls):
        sample = samples[call % 2]
        ids = golden[f"{name}_call{call:02}_ids"].long()[None]
        before = int(golden[f"{name}_call{call:02}_cache_before"])
        at = slice(before, before + ids.shape[1])
        sample.cache.length = before
        keys = sample.block_BL[:, : at.stop]
        hidden = model(ids, sample.position_BL3[:, at], dense(sample.block_BL[:, at], keys), sample.cache)
        logits = model.logits(hidden[0], LUMOS.first_code, LUMOS.codes)
        worst.append((logits[:, columns], golden[f"{name}_call{call:02}_logits"]))
        sums.append((logits.logsumexp(-1), golden[f"{name}_call{call:02}_logsumexp"]))
    report.close(f"{name} trace: logits of {calls} calls", *(torch.cat(side) for side in zip(*worst, strict=True)))
    report.close(f"{name} trace: log-sum-exp", *(torch.cat(side) for side in zip(*sums, strict=True)))


class Sample:
    """One branch of guidance: its cache, and positions and blocks of its whole sequence, known from the first call's prompt."""

    def __init__(self, config: ModelConfig, first_ids: Tensor, capacity: int) -> None:
        row = first_ids.long().tolist()
        start = row.index(LUMOS.video_start)
        seconds, fps = (row[start + i] - LUMOS.number_zero for i in (1, 2))
        rows, columns = ((row[start + 4 + i] - LUMOS.number_zero) * 4 for i in (0, 1))
        grid = Grid(rows, columns)
        frames = -(-capacity // grid.frame_length)
        blank = content_ids(LUMOS, torch.zeros(1, frames, rows, columns, dtype=torch.int64))
        text, length = torch.tensor([row[:start]], dtype=torch.int64), torch.tensor([start])
        batch = pack(LUMOS, grid, text, length, blank, seconds, fps)
        self.position_BL3, self.block_BL = batch.position_BL3, batch.block_BL
        self.cache = Cache(
            config.layers, 1, config.kv_heads, batch.ids_BL.shape[1], config.head_width, torch.device("cpu"), torch.float32
        )


COSMOS_FIXED = {"in_channels": 3, "out_channels": 3, "patch_size": 4, "patch_method": "haar", "quantizer": "FSQ"}
COSMOS_FIXED |= {"num_groups": 1, "z_factor": 1, "encoder": "FACTORIZED", "decoder": "FACTORIZED"}


def build_cosmos(info: dict[str, Any]) -> VideoTokenizer:
    recorded = info["config"]
    for name, value in COSMOS_FIXED.items():
        if recorded.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, all that lumos can do, got {recorded[name]!r}; use another recording")
    config = CosmosConfig(
        temporal=recorded["temporal_compression"],
        spatial=recorded["spatial_compression"],
        levels=tuple(recorded["levels"]),
        channels=recorded["channels"],
        multipliers=tuple(recorded["channels_mult"]),
        blocks=recorded["num_res_blocks"],
        latent_channels=recorded["z_channels"],
    )
    tokenizer = VideoTokenizer(config)
    weights = {name: formula_weight(name, shape, cosmos=True) for name, shape in info["parameters"].items()}
    tokenizer.load_state_dict(from_released(config, weights, "the recording"))
    return tokenizer.eval()


@torch.no_grad()
def check_cosmos(golden: dict[str, Tensor], info: dict[str, Any]) -> int:
    """Whole clips against the recording, then the same clips again, one latent frame at a time."""
    report, tokenizer = Report(), build_cosmos(info)
    video = golden["video"]
    report.close("patched", channels_first(patch(video, first=True)), golden["patched"])
    latents = tokenizer.latents(video, tokenizer.start_stream())
    report.close("pre-quantised", channels_first(latents), golden["pre_quantized"])
    values, indices = tokenizer.fsq(latents)
    report.exact("indices", indices, golden["indices"])
    report.close("codes", channels_first(values), golden["codes"])
    report.exact("indices, encoded as a stream", tokenizer.encode(video, at_once=1), golden["indices"])

    decoded_values = tokenizer.fsq.values(golden["decode_indices"].long())
    report.close("codes to decode", channels_first(decoded_values), golden["decode_codes"])
    report.close("decoded", tokenizer.pixels(decoded_values, tokenizer.start_stream()), golden["decoded"])
    state = tokenizer.start_stream()
    parts = [tokenizer.pixels(frame, state) for frame in decoded_values.split(1, dim=1)]
    report.close("decoded as a stream", torch.cat(parts, dim=2), golden["decoded"])
    return report.failed


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

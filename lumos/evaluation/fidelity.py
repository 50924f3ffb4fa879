"""How near a model's clips are to the shapes world as a whole, and how well a tokenizer keeps clips: distances, PSNR, SSIM."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lumos.diffusion.sampler import SamplerConfig
from lumos.evaluation.distances import FeatureNetwork, Features, distances, features_of, psnr, ssim
from lumos.evaluation.making import batches, usual_batch
from lumos.evaluation.prompts import Prompt
from lumos.generate import Generator
from lumos.tokenizer.model import VideoTokenizer
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import sample_scene

Say = Callable[[int, int], None]


def measure_distances(
    generator: Generator,
    prompts: Sequence[Prompt],
    network: FeatureNetwork,
    name: str,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch: int | None = None,
    say: Say = lambda done, total: None,
) -> dict[str, Any]:
    """Distances between videos of the prompts and renders of the prompts' scenes; ValueError for fewer than 2 of them."""
    videos = [prompt for prompt in prompts if prompt.task == "text to video"]
    real: list[Features] = []

    def clips() -> Iterator[Tensor]:
        done = 0
        for part in batches(videos, batch or usual_batch(generator.device), seed):
            texts = [prompt.text for prompt in part.prompts]
            yield generator(texts, frames=part.prompts[0].frames, seed=part.seeds, sampler=sampler).cpu()
            real.append(network(render(pack([prompt.scene for prompt in part.prompts]), part.prompts[0].frames)))
            done += len(texts)
            say(done, len(videos))

    if len(videos) < 2:
        raise ValueError(f"distances need at least 2 text to video prompts, got {len(videos)}; use more")
    made = features_of(clips(), network)
    truth = Features(*(torch.cat(parts) for parts in zip(*real, strict=True)))
    return {"clips": len(videos), **distances(truth, made, name)}


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: VideoTokenizer,
    device: torch.device,
    clips: int = 64,
    frames: int = 17,
    size: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """PSNR and SSIM of held-out clips against their reconstructions: mean, worst, and of first frames; by clip."""
    rng, tokenizer = random.Random(f"tokenizer, {seed}"), tokenizer.to(device).eval()
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "first_frame_psnr": []}
    for _ in range(clips):
        pixels = render(pack([sample_scene(rng, held_out=True)]), frames, size)
        back = tokenizer.decode(tokenizer.encode(pixels.to(device))).float().clamp(-1, 1).cpu()
        found["psnr"].append(psnr(pixels, back))
        found["ssim"].append(ssim(pixels[0].transpose(0, 1), back[0].transpose(0, 1)))
        found["first_frame_psnr"].append(psnr(pixels[:, :, 0], back[:, :, 0]))
    means = {name: round(sum(values) / clips, 4) for name, values in found.items()}
    return {"clips": clips, **means, "worst_psnr": round(min(found["psnr"]), 4), "worst_ssim": round(min(found["ssim"]), 4)}

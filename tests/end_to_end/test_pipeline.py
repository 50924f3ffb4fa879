"""From nothing to a video at toy size: train a tokenizer, train a model on its codes, load its folder, make frames.

The world has two scenes, so that a moment of training is enough for the prompt to decide what is seen.
"""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lumos
import lumos.worlds.shapes.scene as scenes
from lumos.data.worlds import WorldsConfig
from lumos.diffusion.sampler import SamplerConfig
from lumos.generate import Generator
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.tokenizer.model import TokenizerConfig
from lumos.training.optim import OptimConfig
from lumos.training.train_model import TrainModelConfig, train_model
from lumos.training.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import Thing

TOKENIZER = TrainTokenizerConfig(
    tokenizer=TokenizerConfig((5, 5, 5), (16, 24), (1, 1), (16, 24), (1, 1)),
    optim=OptimConfig(lr=8e-3, warmup_steps=5, ema=0.9),
    batch=4,
    size=32,
    frames=9,
    max_steps=40,
    workers=0,
    evaluate_every=40,
    evaluation_clips=2,
    save_every=40,
)
MODEL = TrainModelConfig(
    model=ModelConfig(vocabulary=0, layers=2, width=64, heads=2, kv_heads=1, head_width=32, ffn=96),
    video=VideoConfig(height=32, width=32, frames=9, fps=8, slots=48, window=3, latest=3),
    worlds=WorldsConfig(size=32, frames=13, chunk=8, pool=2, reuse=4, workers=0),
    optim=OptimConfig(lr=5e-3, warmup_steps=5, ema=0.9),
    sampler=SamplerConfig(steps=4),
    videos=8,
    images=16,
    max_steps=40,
    log_every=20,
    sample_every=40,
    save_every=40,
)

DAY = Scene(Background("cream"), (Thing("square", "black", "medium", "plain", 0.5, 0.5),))
NIGHT = Scene(Background("dark blue"), (Thing("circle", "white", "medium", "plain", 0.5, 0.5),))
PROMPTS = ("a black square stays still", "a white circle stays still")


def day_or_night(rng: random.Random, held_out: bool = False) -> Scene:
    return rng.choice((DAY, NIGHT))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Both networks, trained for a moment, as they come back from the disk."""
    run = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "sample_scene", day_or_night)
        train_tokenizer(TOKENIZER, run / "tokenizer")
        folder = train_model(MODEL, run / "model", run / "tokenizer/tokenizer")
    return Generator.from_folder(folder, device="cpu")


def unlike(pixels_BCFHW: Tensor, scenes: list[Scene]) -> Tensor:
    """How far each video is from its scene: mean absolute difference over pixels, [B]."""
    truth_BCFHW = render(pack(scenes), pixels_BCFHW.shape[2], 32)
    return (pixels_BCFHW - truth_BCFHW).abs().mean(dim=(1, 2, 3, 4))


@pytest.mark.parametrize("frames", [1, 9, 25])
def test_the_prompt_decides_what_is_seen(generator: Generator, frames: int) -> None:
    """For an image, a video of the trained length, and one that leaves the oldest frames behind."""
    pixels_BCFHW = generator(PROMPTS, frames=frames, seed=0)
    assert pixels_BCFHW.shape == (2, 3, frames, 32, 32) and pixels_BCFHW.abs().max() <= 1
    assert (unlike(pixels_BCFHW, [DAY, NIGHT]) < 0.5 * unlike(pixels_BCFHW, [NIGHT, DAY])).all()


@pytest.mark.parametrize("given", [1, 5])
def test_a_given_image_or_video_goes_on(generator: Generator, given: int) -> None:
    """What is given stays in front, as the tokenizer shows it, and what follows is the same scene."""
    start_BCFHW = render(pack([NIGHT]), given, 32)
    pixels_BCFHW = generator(PROMPTS[1], frames=9, seed=0, given=start_BCFHW[0])
    again_BCFHW = generator.tokenizer.decode(generator.tokenizer.encode(start_BCFHW))
    torch.testing.assert_close(pixels_BCFHW[:, :, :given], again_BCFHW, rtol=0, atol=1e-4)
    assert unlike(pixels_BCFHW, [NIGHT]) < 0.5 * unlike(pixels_BCFHW, [DAY])


def test_the_weights_in_the_package_show_what_is_said() -> None:
    (folder,) = Path(lumos.__file__).parent.glob("pretrained/*")
    pixels_BCFHW = Generator.from_folder(folder, "cpu")(["a red heart", "a blue heart"], frames=1, steps=2)
    redder_BHW = pixels_BCFHW[:, 0, 0] - pixels_BCFHW[:, 2, 0]
    assert redder_BHW[0].max() > 1 > -1 > redder_BHW[1].min()

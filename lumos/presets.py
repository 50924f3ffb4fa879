"""Every named configuration, as Python: what `lumos train NAME` and `lumos train-tokenizer NAME` run."""

from lumos.data.shapes import ShapesConfig
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.tokenizer.losses import LossConfig
from lumos.tokenizer.model import TokenizerConfig
from lumos.training.optim import OptimConfig
from lumos.training.train_model import TrainModelConfig
from lumos.training.train_tokenizer import TrainTokenizerConfig

TINY_SHAPE = ModelConfig(vocabulary=0, layers=8, width=384, heads=6, kv_heads=2, head_width=64, ffn=1024)

MODELS: dict[str, TrainModelConfig] = {
    # The weights in the package: about 17 M parameters, shapes at 128x128, 17 frames at 8 fps. For one or more large GPUs.
    "shapes-tiny": TrainModelConfig(
        model=TINY_SHAPE,
        video=VideoConfig(height=128, width=128, frames=17, fps=8, slots=64, window=5, latest=8),
        shapes=ShapesConfig(),
        optim=OptimConfig(lr=1.2e-3, warmup_steps=300, ema=0.9993, decay_share=0.7),
        sampler=SamplerConfig(steps=16, guidance=3.0, temperature=0.6, noise=50.0, history=0.92),
        max_seconds=450.0,
    ),
    # The same at a size that shows life on two CPU cores in a few minutes.
    "shapes-toy": TrainModelConfig(
        model=ModelConfig(vocabulary=0, layers=3, width=128, heads=2, kv_heads=1, head_width=64, ffn=256),
        video=VideoConfig(height=64, width=64, frames=9, fps=8, slots=64, window=3, latest=4),
        shapes=ShapesConfig(size=64, frames=17, chunk=32, pool=8, workers=1),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, ema=0.99),
        sampler=SamplerConfig(steps=8),
        videos=8,
        images=32,
        max_steps=300,
        log_every=10,
        sample_every=100,
        save_every=100,
    ),
}

TOKENIZERS: dict[str, TrainTokenizerConfig] = {
    # The tokenizer in the package.
    "shapes-tiny": TrainTokenizerConfig(
        tokenizer=TokenizerConfig(levels=(8, 8, 8, 8)),
        optim=OptimConfig(lr=2e-3, warmup_steps=300, ema=0.999),
        loss=LossConfig(knee=0.15, coarse=0.25),
        batch=32,
        workers=6,
        max_steps=None,
        max_seconds=330.0,
    ),
    "shapes-toy": TrainTokenizerConfig(
        tokenizer=TokenizerConfig(encoder_widths=(32, 48), encoder_blocks=(1, 1), decoder_widths=(32, 64), decoder_blocks=(1, 1)),
        batch=4,
        size=64,
        frames=9,
        workers=1,
        max_steps=300,
        evaluate_every=100,
        evaluation_clips=16,
        save_every=100,
    ),
}

"""Every named configuration, as Python: what `lumos train NAME` and `lumos train-tokenizer NAME` run."""

from lumos.data.worlds import WorldsConfig
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import LUMOS_1B, LUMOS_3B, ModelConfig
from lumos.model_folder import VideoConfig
from lumos.sequence.prompt_template import TEMPLATE
from lumos.tokenizer.losses import LossConfig
from lumos.tokenizer.model import TokenizerConfig
from lumos.training.config import TrainModelConfig
from lumos.training.optim import OptimConfig
from lumos.training.parallel import ParallelConfig
from lumos.training.train_tokenizer import TrainTokenizerConfig

BOX_SHAPE = ModelConfig(vocabulary=0, layers=10, width=512, heads=8, kv_heads=2, head_width=64, ffn=1536)


def published(shape: ModelConfig, stage: str, lr: float) -> TrainModelConfig:
    """A stage of the paper's training: images at 256p, then images and videos (2 s at 12 fps) in turn at 256p, then at 384p.

    Learning rates, mask law, guidance dropout, decay, clipping and 384p's batch are the paper's; how many steps, and 256p's
    batch (about as many ids), are ours. Each stage starts from the one before (--init) and needs shards (--data).
    """
    large = stage == "384p"
    height, width = (384, 672) if large else (256, 448)
    return TrainModelConfig(
        model=shape,
        video=VideoConfig(height, width, frames=25, fps=12, slots=512, window=7, latest=6, template=TEMPLATE),
        worlds=None,
        optim=OptimConfig(lr=lr, clip=4.0, warmup_steps=100, schedule="constant", ema=0.0),
        parallel=ParallelConfig(shard=True, recompute="selective", compile="dynamic"),
        sampler=SamplerConfig(steps=50, guidance=15.0),
        videos=1 if large else 2,
        images=6 if large else 14,
        image_every=1 if stage == "256p-images" else 2,
        late_windows=0.0,
        max_steps=100_000,
        log_every=10,
        save_every=1000,
    )


MODELS: dict[str, TrainModelConfig] = {
    # minutes on two CPU cores: the weights in the package (--init) learn to draw whole shapes at 128x128
    "shapes-128": TrainModelConfig(
        model=BOX_SHAPE,
        video=VideoConfig(height=128, width=128, frames=9, fps=8, slots=64, window=3, latest=4, spatial=16),
        worlds=WorldsConfig(size=128, frames=17, chunk=32, pool=8, workers=1),
        optim=OptimConfig(lr=3e-4, warmup_steps=10, ema=0.9),
        sampler=SamplerConfig(8, guidance=3.0, temperature=0.7, history=0.7, sampler="halton", guidance_until=0.5, first=2.0),
        mask="nested",
        least_ratio=0.2,
        videos=2,
        images=6,
        image_every=2,
        max_steps=100,
        log_every=10,
        sample_every=50,
        save_every=50,
    ),
    # a small model from random weights at 64x64, for two CPU cores: the loss falls within minutes, shapes take hours
    "shapes-toy": TrainModelConfig(
        model=ModelConfig(vocabulary=0, layers=3, width=128, heads=2, kv_heads=1, head_width=64, ffn=256),
        video=VideoConfig(height=64, width=64, frames=9, fps=8, slots=64, window=3, latest=4),
        worlds=WorldsConfig(size=64, frames=17, chunk=32, pool=8, workers=1),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, ema=0.99),
        sampler=SamplerConfig(steps=8),
        videos=8,
        images=32,
        max_steps=300,
        log_every=10,
        sample_every=100,
        save_every=100,
    ),
    # 46 M parameters; shapes, stickers and creatures at 256x256, 25 frames at 12 fps: the weights in the package (recipes/)
    "box": TrainModelConfig(
        model=BOX_SHAPE,
        video=VideoConfig(height=256, width=256, frames=25, fps=12, slots=64, window=7, latest=6, spatial=16),
        worlds=WorldsConfig(256, frames=25, fps=12, shapes=0.35, stickers=0.35, creatures=0.3, chunk=1024, reuse=12, workers=12),
        optim=OptimConfig(lr=1e-3, warmup_steps=200, ema=0.999, decay_share=0.5, muon=2.5),
        # Halton's order: the most confident codes are those of plain ground, which would leave no room for things
        sampler=SamplerConfig(8, guidance=3.0, temperature=0.5, history=0.7, sampler="halton", guidance_until=0.5, first=6.0),
        text_vocabulary=3072,
        mask="nested",
        least_ratio=0.2,
        image_every=2,
        keyframes=0.15,
        late_windows=0.0,
        max_seconds=7200.0,
    ),
    "1b-256p-images": published(LUMOS_1B, "256p-images", 5e-5),  # the paper's 1B model: first images,
    "1b-256p": published(LUMOS_1B, "256p", 2.5e-5),  # then images and videos of 448x256,
    "1b-384p": published(LUMOS_1B, "384p", 2.5e-5),  # then of 672x384
    "3b-256p-images": published(LUMOS_3B, "256p-images", 1e-4),  # the paper's 3B model: first images,
    "3b-256p": published(LUMOS_3B, "256p", 2.5e-5),  # then images and videos of 448x256,
    "3b-384p": published(LUMOS_3B, "384p", 2.5e-5),  # then of 672x384
}

TOKENIZERS: dict[str, TrainTokenizerConfig] = {
    # the tokenizer in the package: 256 places per latent frame of 256x256, two sub-codes of 4,096 in each; 12 M parameters
    "box": TrainTokenizerConfig(
        tokenizer=TokenizerConfig((8,) * 8, (96, 160, 256), (2, 2, 3), (128, 224, 320), (4, 4, 4)),
        optim=OptimConfig(lr=1e-3, weight_decay=0.01, warmup_steps=250, ema=0.999, decay_share=0.8, muon=1.5),
        loss=LossConfig(knee=0.15, coarse=0.25),
        batch=20,
        stickers=0.6,
        creatures=0.25,
        size=256,
        frames=17,
        fps=12.0,
        workers=12,
        max_steps=None,
        max_seconds=1800.0,
    ),
    # small, at 64x64, for two CPU cores
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

"""The configuration of a training run: what is trained, on what, and for how long."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lumos.config import Range, Scale, Share, Size, SomeShare, Whole
from lumos.data.loader import LoaderConfig
from lumos.data.worlds import WorldsConfig
from lumos.diffusion.masking import LEAST_RATIO, MaskKind
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.tokenizer.compression import latent_frames
from lumos.training.learner import Spike
from lumos.training.lora import LoraSettings
from lumos.training.optim import OptimConfig
from lumos.training.parallel import ParallelConfig


@dataclass(frozen=True)
class Sources:
    """The files that a run is made from, beside a model's tokenizer."""

    # shards to train on (lumos prepare; with --pixels for a tokenizer), a folder or fsspec URL; --set data_share=0.5 mixes them
    # with the worlds (default: the worlds alone)
    data: str | None = None
    init: Path | None = None  # weights to start from: a name in the package, or a folder (default: random weights)
    text: Path | None = None  # text_tokenizer.json of the published models, for their vocabulary without --init
    stickers: Path | None = None  # manifest of the stickers world (examples/emoji.md), for presets with it
    creatures: Path | None = None  # folder or zip of the creatures' GLB files (examples/creatures.md), for presets with them


NOTHING = Sources()


@dataclass(frozen=True)
class TrainModelConfig:
    """A run of `train_model`."""

    model: ModelConfig  # its vocabulary 0 = as many ids as text, structure and codes need
    video: VideoConfig
    worlds: WorldsConfig | None  # the built-in worlds; without them a run needs shards
    optim: OptimConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # of the samples, kept with the weights
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data_share: SomeShare = 1.0  # of the steps that train on shards, if there are any; the rest are of the worlds
    text_vocabulary: Size = 768  # most text ids of a new vocabulary
    new_words: bool = False  # give a trained model (--init) a new text vocabulary
    mask: MaskKind = "tube"  # law by which codes are masked
    least_ratio: SomeShare = LEAST_RATIO  # smallest share of a frame's codes that is masked
    videos: Whole = 64  # of a step on one GPU
    images: Whole = 256  # of an image step on one GPU
    accumulate: Whole = 1  # parts that a step's batch is computed in
    image_every: Annotated[int, Range(0, 10**9)] = 4  # every which step is one of images; 0 = none
    drop_text: Share = 0.1  # share of samples that lose their prompt, for guidance
    keyframes: Share = 0.0  # share of video steps that give a later frame first, so that the model can end where it is told to
    late_windows: Share = 0.3  # share of video steps whose window starts later than the first frame
    spike: Spike = 20.0  # a step whose gradient is so many times its usual size, or no number, is skipped
    patience: Whole = 10  # so many skipped steps in a row end the run when the next line is logged
    max_steps: Whole | None = None  # steps at most; null = no limit
    max_seconds: Scale | None = None  # seconds at most; null = no limit
    log_every: Whole = 50  # steps
    sample_every: Whole = 2000  # steps
    save_every: Whole = 2000  # steps
    keep: Whole = 2  # checkpoints
    seed: int = 0  # of weights, data and masks

    @property
    def moments(self) -> int:
        """Bytes that the optimiser keeps per parameter: AdamW's two moments and the moving average; adapters' are few."""
        return 0 if self.lora.rank else 12 if self.optim.ema else 8

    def __post_init__(self) -> None:
        for name, size in (("videos", self.videos), ("images", self.images)):
            if size % self.accumulate:
                raise ValueError(f"{name} must be a multiple of accumulate = {self.accumulate}, got {size}; change one")
        if self.new_words and self.lora.rank:
            raise ValueError("adapters leave the words as they are, got new_words=true; set it to false, or lora.rank to 0")
        if self.lora.rank and self.parallel.shard:
            raise ValueError("lora.rank must be 0 with parallel.shard, got both; set parallel.shard=false")
        if self.worlds is None:
            return
        for name, value in (("height", self.worlds.size), ("width", self.worlds.size), ("fps", self.worlds.fps)):
            if getattr(self.video, name) != value:
                raise ValueError(f"video.{name} must be {value}, as in worlds, got {getattr(self.video, name)}; change one")
        last = latent_frames(self.worlds.frames, self.video.temporal) - 1
        if self.video.latest > last:
            raise ValueError(f"video.latest must be a latent frame of the clips, at most {last}, got {self.video.latest}")

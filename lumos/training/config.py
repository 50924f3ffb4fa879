"""The configuration of a training run: what is trained, on what, for how long; and which of it a resumed run must keep."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lumos.data.loader import LoaderConfig
from lumos.data.shapes import ShapesConfig
from lumos.diffusion.masking import LEAST_RATIO, MaskKind
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import VideoConfig
from lumos.training.lora import LoraSettings
from lumos.training.optim import OptimConfig
from lumos.training.parallel import ParallelConfig


@dataclass(frozen=True)
class TrainModelConfig:
    """`model.vocabulary` 0 = as many ids as text, structure and codes need. `shapes`: the built-in world; without it a run needs
    shards. `videos`, `images`: the batch of a step on one GPU, split into `accumulate` parts; every `image_every`-th step is an
    image step (0 = none). `drop_text`: share of samples that lose their prompt (for guidance). `late_windows`: share of video
    steps whose window starts later than the first frame. `data_share`: share of steps that train on shards, if there are any;
    the rest are shapes. `text_vocabulary`: most text ids of a new model; `new_words`: make them anew for a model that is trained
    on. `lora`: train adapters only. A step whose gradient is no number, or `spike` times its usual size, is
    skipped; `patience` of them in a row end the run.
    """

    model: ModelConfig
    video: VideoConfig
    shapes: ShapesConfig | None
    optim: OptimConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data_share: float = 1.0
    text_vocabulary: int = 768
    new_words: bool = False
    mask: MaskKind = "tube"
    least_ratio: float = LEAST_RATIO
    videos: int = 64
    images: int = 256
    accumulate: int = 1
    image_every: int = 4
    drop_text: float = 0.1
    late_windows: float = 0.3
    spike: float = 20.0
    patience: int = 10
    max_steps: int | None = None
    max_seconds: float | None = None
    log_every: int = 50
    sample_every: int = 2000
    save_every: int = 2000
    keep: int = 2  # checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        for name, size in (("videos", self.videos), ("images", self.images)):
            if self.accumulate < 1 or size < 1 or size % self.accumulate:
                raise ValueError(f"{name} must be a multiple of accumulate = {self.accumulate}, got {size}; change one")
        for name, least, given in (("spike", 1, self.spike), ("patience", 0, self.patience), ("keep", 0, self.keep)):
            if given <= least:
                raise ValueError(f"{name} must be more than {least}, got {given}; leave it at its default")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share must be above 0 and up to 1, got {self.data_share}; use 0.5")
        if self.new_words and self.lora.rank:
            raise ValueError("adapters leave the words as they are, got new_words=true; set it to false, or lora.rank to 0")
        if self.optim.muon and self.parallel.shard:
            raise ValueError("optim.muon needs whole matrices, got parallel.shard=true; set one of them to 0 or false")
        if self.shapes is None:
            return
        for name, value in (("height", self.shapes.size), ("width", self.shapes.size), ("fps", self.shapes.fps)):
            if getattr(self.video, name) != value:
                raise ValueError(f"video.{name} must be {value}, as in shapes, got {getattr(self.video, name)}; change one")
        if self.video.latest > (self.shapes.frames - 1) // 4:
            raise ValueError(
                f"video.latest must be a latent frame of the clips, at most {(self.shapes.frames - 1) // 4}, "
                f"got {self.video.latest}; make shapes.frames longer"
            )


# Budget, logging and how the work is split up: they do not change what is trained.
FREE = (
    "max_steps",
    "max_seconds",
    "log_every",
    "sample_every",
    "save_every",
    "keep",
    "spike",
    "patience",
    "sampler",
    "accumulate",
    "parallel",
    "shapes.workers",
    "loader.workers",
    "loader.ahead",
    "loader.cache_mib",
)


def recorded(config: TrainModelConfig, tokenizer: nn.Module) -> dict[str, Any]:
    """What a checkpoint says of its run: every setting, and which tokenizer made the codes."""
    weights = b"".join(tensor.numpy(force=True).tobytes() for tensor in tokenizer.state_dict().values())
    return {**asdict(config), "tokenizer": hashlib.sha256(weights).hexdigest()[:16]}


def check_same(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """ValueError, naming every setting that differs, when a resumed run would train something else than it began."""
    then = _flat(saved)
    differing = [
        f"{name} = {value} where {where} has {then[name]}"
        for name, value in _flat(json.loads(json.dumps(now))).items()
        if then.get(name, value) != value and not name.startswith(FREE)
    ]
    if differing:
        raise ValueError(f"a resumed run must keep its config, got {', '.join(differing)}; use that, or a new folder")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as --set calls them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat

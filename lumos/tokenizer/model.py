"""The causal video tokenizer: pixels_BCFHW in [-1, 1] <-> codes_BTHW, whole clips or streams; our own network or Cosmos'.

1 + k * temporal frames become 1 + k latent frames, height and width are divided by `spatial`; an image is a video of one frame.
One code path serves clips and streams: a stream only adds a memory for the layers that look back in time.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from lumos.config import read_config
from lumos.tokenizer.compression import check_sides, latent_frames, pixel_frames
from lumos.tokenizer.cosmos import CosmosConfig, CosmosDecoder, CosmosEncoder
from lumos.tokenizer.fsq import FSQ
from lumos.tokenizer.layers import StreamState, patch, unpatch
from lumos.tokenizer.small import Decoder, Encoder, TokenizerConfig
from lumos.weights import CONFIG, FORMAT, check_names, load_folder, save_folder


class VideoTokenizer(nn.Module):
    """Encoder, FSQ and decoder of either network.

    Computes in the parameters' type, or in bf16 under the caller's torch.autocast; Haar, norms and FSQ in float32.
    """

    def __init__(self, config: TokenizerConfig | CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq, D = FSQ(config.levels), len(config.levels)
        # pixel frames per latent frame, after the first; pixels per code, in height and in width; how many codes there are
        self.temporal, self.spatial, self.codebook_size = config.temporal, config.spatial, self.fsq.codebook_size
        self.encoder = CosmosEncoder(config) if isinstance(config, CosmosConfig) else Encoder(config)
        self.quant_conv = nn.Linear(config.latent_channels, D) if isinstance(config, CosmosConfig) else nn.Identity()
        self.post_quant_conv = nn.Linear(D, config.latent_channels) if isinstance(config, CosmosConfig) else nn.Identity()
        self.decoder = CosmosDecoder(config) if isinstance(config, CosmosConfig) else Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it

    @property
    def reach(self) -> int:
        """Latent frames before the present one that its pixels depend on, at most."""
        return sum(getattr(layer, "remembers", 0) for layer in self.decoder.modules())

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: matrices and kernels uniform with variance 1 / (3 * fan-in), biases 0, norms 1."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                bound = parameter[0].numel() ** -0.5
                nn.init.uniform_(parameter, -bound, bound, generator)
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)

    def forward(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode, for training: (reconstruction_BCFHW float32, not clamped; codes_BTHW)."""
        self._check(pixels_BCFHW)
        values_BTHWD, codes_BTHW = self.fsq(self.latents(pixels_BCFHW, StreamState(memory=None)))
        return self.pixels(values_BTHWD, StreamState(memory=None)), codes_BTHW

    @torch.no_grad()
    def encode(self, pixels_BCFHW: Tensor, at_once: int | None = None) -> Tensor:
        """Pixels in [-1, 1] -> codes_BTHW int64. ValueError for a length or sides that do not fit.

        at_once: latent frames that pass through together; it changes time and memory, not the result.
        """
        state, parts = self.start_stream(), []
        for _, _, frames in self._pieces(self._check(pixels_BCFHW), at_once):
            parts.append(self.fsq(self.latents(pixels_BCFHW[:, :, frames], state))[1])
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def decode(self, codes_BTHW: Tensor, at_once: int | None = None) -> Tensor:
        """Codes -> pixels_BCFHW float32 in [-1, 1]. ValueError for codes out of range. `at_once`: see `encode`."""
        if codes_BTHW.ndim != 4 or not codes_BTHW.shape[1]:
            raise ValueError(f"codes must have 4 dimensions B, T, H, W and T > 0, got shape {list(codes_BTHW.shape)}")
        B, T, H, W = codes_BTHW.shape
        size = (B, 3, pixel_frames(T, self.temporal), H * self.spatial, W * self.spatial)
        state, pixels_BCFHW = self.start_stream(), torch.empty(size, device=codes_BTHW.device)
        for start, stop, frames in self._pieces(T, at_once):
            values_BTHWD = self.fsq.values(codes_BTHW[:, start:stop])
            pixels_BCFHW[:, :, frames] = self.pixels(values_BTHWD, state).clamp(-1, 1)
        return pixels_BCFHW

    def start_stream(self) -> StreamState:
        """A fresh state for `decode_next` (one stream, any batch)."""
        return StreamState()

    @torch.no_grad()
    def decode_next(self, codes_BHW: Tensor, state: StreamState) -> Tensor:
        """The next latent frame -> its pixels_BCFHW: 1 frame for a stream's first, `temporal` for each later one."""
        if codes_BHW.ndim != 3:
            raise ValueError(f"codes of a latent frame must have 3 dimensions B, H, W, got shape {list(codes_BHW.shape)}")
        return self.pixels(self.fsq.values(codes_BHW[:, None]), state).clamp(-1, 1)

    def latents(self, pixels_BCFHW: Tensor, state: StreamState) -> Tensor:
        """The next frames of a stream -> the channels [B, T, H, W, D] that the FSQ rounds."""
        patches_BTHWC = patch(pixels_BCFHW, first=not state.started).to(next(self.encoder.parameters()).dtype)
        state.started = True
        return self.quant_conv(self.encoder(patches_BTHWC, state.memory))

    def pixels(self, values_BTHWD: Tensor, state: StreamState) -> Tensor:
        """The FSQ's values of a stream's next latent frames -> pixels_BCFHW float32, not clamped."""
        latents_BTHWC = self.post_quant_conv(values_BTHWD.to(next(self.decoder.parameters()).dtype))
        first, state.started = not state.started, True
        return unpatch(self.decoder(latents_BTHWC, state.memory), first)

    def _pieces(self, T: int, at_once: int | None) -> Iterator[tuple[int, int, slice]]:
        """(first latent frame, the one after the last, their pixel frames) of what passes through together."""
        size = self.config.at_once if at_once is None else at_once
        if size < 1:
            raise ValueError(f"latent frames at once must be at least 1, got {size}")
        for start in range(0, T, size):
            stop = min(start + size, T)
            yield start, stop, slice(pixel_frames(start, self.temporal), pixel_frames(stop, self.temporal))

    def _check(self, pixels_BCFHW: Tensor) -> int:
        """Latent frames of a clip. ValueError for one that cannot be encoded."""
        if pixels_BCFHW.ndim != 5 or pixels_BCFHW.shape[1] != 3:
            raise ValueError(f"pixels must have shape B, 3, F, H, W, got {list(pixels_BCFHW.shape)}; give RGB clips")
        frames, height, width = pixels_BCFHW.shape[2:]
        check_sides(height, width, self.spatial)
        return latent_frames(frames, self.temporal)


def save_tokenizer(folder: Path, tokenizer: VideoTokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Write a weights folder, the parameters stored as `dtype` (torch.bfloat16 halves it)."""
    tensors = ((name, tensor.to(dtype)) for name, tensor in tokenizer.state_dict().items())
    save_folder(folder, tokenizer_header(tokenizer.config), tensors)


def tokenizer_header(config: TokenizerConfig | CosmosConfig) -> dict[str, object]:
    """What config.json of a tokenizer's folder holds."""
    values = asdict(config)
    return {"kind": "tokenizer", "format": FORMAT, "config": {"cosmos": values} if isinstance(config, CosmosConfig) else values}


def load_tokenizer(folder: Path) -> VideoTokenizer:
    """Read a weights folder: float32 on the CPU, in eval mode. ValueError for a damaged or foreign folder."""
    values, tensors = load_folder(folder, "tokenizer")
    where, is_cosmos = folder / CONFIG, set(values) == {"cosmos"}
    config = read_config(CosmosConfig, values["cosmos"], where) if is_cosmos else read_config(TokenizerConfig, values, where)
    with torch.device("meta"):
        expected = VideoTokenizer(config).state_dict()  # before anything of a wrong config's size is allocated
    check_names(tensors, expected, folder)
    tokenizer = VideoTokenizer(config)
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()

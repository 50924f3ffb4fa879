"""How well a tokenizer keeps real clips: PSNR of the first 17 frames of every held-out clip of picture shards, or of all clips.

    python benchmarks/tokenizer.py emoji/pictures --sheet emoji.png
    python benchmarks/tokenizer.py camera/pictures --all

Held out are those that `lumos train-tokenizer --data` never trains on. For shapes there is `lumos evaluate tokenizer`. The
mean is over clips; decoding is streamed, frame by frame, as generation does it. Needs no PyAV.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumos.config import PACKAGED
from lumos.data.pixels import open_pixels, split_rows
from lumos.data.shards import ShardReader
from lumos.generate import pick_device
from lumos.media.pixels import clips_to_pixels
from lumos.media.sheet import contact_sheet
from lumos.tokenizer.losses import psnr
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.weights import find_weights

SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="shards made with lumos prepare --pixels")
    parser.add_argument(
        "--tokenizer", default=PACKAGED, help=f"name of weights in the package, or a folder (default: {PACKAGED})"
    )
    parser.add_argument("--all", action="store_true", help="all clips; for material that the tokenizer was not trained on")
    parser.add_argument("--frames", type=int, default=17, help="of each clip, fewer where it is shorter (default: 17)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side, from the middle (default: 256)")
    parser.add_argument("--sheet", type=Path, default=None, help=f"PNG with {SHOWN} originals and reconstructions")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    args = parser.parse_args()
    device = pick_device(args.device)
    tokenizer = load_tokenizer(find_weights(args.tokenizer, "tokenizer")).to(device).eval()
    index = open_pixels(args.pictures, args.size)
    reader = ShardReader(index, ["clip", "captions"])
    rows = np.arange(len(index)) if args.all else split_rows(index)[1]
    if not len(rows):
        raise SystemExit(f"{args.pictures} must hold a held-out clip, got none; use --all")
    found: list[tuple[float, float, str]] = []
    shown: list[tuple[str, Tensor]] = []
    for row in rows.tolist():
        values = reader.row(row)
        pixels_BCFHW = first_frames(values["clip"], args.frames, args.size)
        back_BCFHW = there_and_back(tokenizer, pixels_BCFHW.to(device))
        caption = values["captions"][0]
        first = psnr(back_BCFHW[:, :, :1], pixels_BCFHW[:, :, :1])
        found.append((float(psnr(back_BCFHW, pixels_BCFHW)), float(first), caption))
        if len(shown) < 2 * SHOWN and pixels_BCFHW.shape[2] == args.frames:
            shown += [(f"{caption}: {found[-1][0]:.1f} dB", pixels_BCFHW), ("reconstruction", back_BCFHW)]
    if args.sheet and shown:
        contact_sheet(torch.cat([clip for _, clip in shown]), [text for text, _ in shown]).save(args.sheet)
    worst = min(found)
    document = {
        "clips": len(found),
        "of": len(index),
        "psnr": round(sum(clip for clip, _, _ in found) / len(found), 3),
        "psnr_first_frames": round(sum(first for _, first, _ in found) / len(found), 3),
        "psnr_worst": round(worst[0], 3),
        "worst": worst[2],
    }
    print(f"PSNR {document['psnr']:.2f} dB, first frames {document['psnr_first_frames']:.2f}, worst {worst[0]:.2f} ({worst[2]})")
    print(json.dumps(document))


def first_frames(rgb_FHWC: NDArray[np.uint8], frames: int, size: int) -> Tensor:
    """Up to `frames` frames, 1 + 4k of them, cropped in the middle: pixels_BCFHW of one clip."""
    frames = 1 + (min(frames, len(rgb_FHWC)) - 1) // 4 * 4
    top, left = (rgb_FHWC.shape[1] - size) // 2, (rgb_FHWC.shape[2] - size) // 2
    cropped = np.ascontiguousarray(rgb_FHWC[:frames, top : top + size, left : left + size])
    return clips_to_pixels(torch.from_numpy(cropped)[None])


@torch.inference_mode()
def there_and_back(tokenizer: VideoTokenizer, pixels_BCFHW: Tensor) -> Tensor:
    """Encoded whole, decoded frame by frame."""
    decoder = tokenizer.start_stream()
    codes_BTHW = tokenizer.encode(pixels_BCFHW)
    decoded = [tokenizer.decode_next(codes_BHW, decoder).float().clamp(-1, 1).cpu() for codes_BHW in codes_BTHW.unbind(1)]
    return torch.cat(decoded, dim=2)


if __name__ == "__main__":
    main()

"""How fast `lumos prepare` reads videos, beside PyAV's own decode-and-resize loop on the same threads; and with the tokenizer.

    python benchmarks/prepare.py VIDEO... [--threads 2] [--size 128x128] [--fps 8] [--tokenizer NAME] [--repeat 3]
    python benchmarks/prepare.py emoji/pictures [--device cuda]

PyAV's loop decodes every frame and resizes each with swscale's bicubic. `prepare` is measured at every frame too (the same work),
and at the asked rate, where it resizes only the frames that it keeps. From picture shards (a folder) it only unpacks and
tokenises, which needs no PyAV.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lumos.config import PACKAGED
from lumos.data.clips import Cut, read_clips
from lumos.data.manifest import Entry
from lumos.data.prepare import PrepareConfig, prepare_shards
from lumos.ranks import Ranks
from lumos.tokenizer.model import load_tokenizer
from lumos.weights import find_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, help="video files, or one folder of picture shards")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--fps", type=float, default=8)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--tokenizer", default=PACKAGED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many rounds counts")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    cut = Cut(args.frames, args.fps, ((height, width),), least=5)
    if not args.videos[0].is_dir():
        compare_decoding(args.videos, cut, args.threads, args.repeat)
    with TemporaryDirectory() as folder:
        manifest = args.videos[0]
        if not manifest.is_dir():
            manifest = Path(folder) / "clips.csv"
            manifest.write_text("path,caption\n" + "".join(f"{path.absolute()},x\n" for path in args.videos))
        tokenizer = load_tokenizer(find_weights(args.tokenizer, "tokenizer"))
        ranks = Ranks(0, 1, torch.device(args.device))
        found = [
            prepare_shards(manifest, Path(folder) / f"shards{number}", PrepareConfig(cut), tokenizer, ranks, workers=args.threads)
            for number in range(args.repeat if args.device != "cpu" else 1)  # the first one on a GPU also starts it
        ]
    document = min(found, key=lambda document: document["seconds"])
    seconds = document["seconds"]
    print(
        f"whole prepare on {args.device}, {args.threads} threads: {document['clips_made']} clips in {seconds} s, "
        f"{document['clips_made'] / seconds:.1f} clips/s, {document['frames_made'] / seconds:.0f} frames/s"
        + (f" (first time {found[0]['seconds']} s)" if len(found) > 1 else "")
    )


def compare_decoding(videos: list[Path], cut: Cut, threads: int, repeat: int) -> None:
    """Source frames a second: PyAV's loop, `prepare` at every frame, `prepare` at the rate of `cut`."""
    import av

    (height, width), count = cut.sizes[0], sum(frames_in(path) for path in videos)
    print(f"{len(videos)} videos, {count} frames, {threads} threads, {width}x{height}")

    def every_frame(path: Path) -> None:
        with av.open(str(path)) as container:
            fps = float(container.streams.video[0].average_rate or 30)
        drain(path, replace(cut, fps=fps))

    loop = best(lambda path: pyav_loop(path, width, height), videos, threads, repeat)
    same = best(every_frame, videos, threads, repeat)
    kept = best(lambda path: drain(path, cut), videos, threads, repeat)
    print(f"PyAV's loop:           {count / loop:8.0f} source frames/s")
    print(f"prepare, every frame:  {count / same:8.0f} source frames/s, {loop / same:.2f} of PyAV's loop")
    print(f"prepare, {cut.fps:g} fps:        {count / kept:8.0f} source frames/s, {loop / kept:.2f} of PyAV's loop")


def pyav_loop(path: Path, width: int, height: int) -> None:
    """What a user would write."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frame.reformat(width, height, format="rgb24", interpolation="BICUBIC").to_ndarray()


def drain(path: Path, cut: Cut) -> None:
    for _ in read_clips(Entry(1, str(path)), cut):
        pass


def best(read: Callable[[Path], None], videos: list[Path], threads: int, repeat: int) -> float:
    """Seconds of the fastest round."""
    found = []
    for _ in range(repeat):
        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, videos))
        found.append(time.perf_counter() - begin)
    return min(found)


def frames_in(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.demux(video=0)) - 1


if __name__ == "__main__":
    main()

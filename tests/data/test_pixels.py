"""Batches of pixels for the tokenizer: functions of (seed, rank, step), true to the clips, never from the held-out ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumos.data.clips import Cut
from lumos.data.pixels import PixelBatches, held_out_clips, split_rows, stretched
from lumos.data.prepare import PrepareConfig, prepare_shards
from lumos.data.shards import CODES, open_shards, write_shard
from lumos.ranks import ALONE

COUNT = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Animations of 7 frames: red tells the file, green the time, and the right half is blue."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "in").mkdir()
    for number in range(COUNT):
        rgb_FHWC = np.zeros((7, 40, 40, 3), np.uint8)
        rgb_FHWC[..., 0], rgb_FHWC[..., 20:, 2] = 4 * number, 200
        rgb_FHWC[..., 1] = 10 * np.arange(7)[:, None, None]
        frames = list(map(Image.fromarray, rgb_FHWC))
        frames[0].save(folder / "in" / f"{number}.webp", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    config = PrepareConfig(Cut(9, 8.0, ((40, 40),), step=1, least=1), rows=COUNT)
    prepare_shards(folder / "in", folder / "out", config, None, ALONE)
    return folder / "out"


def batches(pictures: Path, seed: int = 0, rank: int = 0, world: int = 1, frames: int = 5) -> PixelBatches:
    return PixelBatches(str(pictures), 6, frames, 32, seed, rank, world)


def test_a_batch_depends_on_seed_rank_and_step_alone(pictures: Path) -> None:
    source = batches(pictures)
    expected = source[4]
    source[0], source[9]
    assert expected.shape == (6, 5, 32, 32, 3) and expected.dtype == torch.uint8
    assert torch.equal(batches(pictures)[4], expected) and torch.equal(source[4], expected)
    for other in (batches(pictures)[5], batches(pictures, seed=1)[4], batches(pictures, rank=1, world=2)[4]):
        assert not torch.equal(other, expected)


def test_half_are_mirrored_and_all_places_and_times_come_up(pictures: Path) -> None:
    source = batches(pictures)
    clips = torch.cat([source[step] for step in range(30)]).float()
    left, right = (clips[:, 0, :, side, 2].mean(1) for side in (0, -1))
    assert ((left - right).abs() > 150).all() and 0.35 < (left > right).float().mean() < 0.65
    edges = {int((clip[0, 0, :, 2].diff().abs() > 60).nonzero()[0]) for clip in clips}
    assert len(edges) > 5  # crops at many places
    assert {round(float(clip[0, ..., 1].mean()) / 10) for clip in clips} == {0, 1, 2}
    assert all(torch.allclose(clip[..., 1].mean((1, 2)).diff(), torch.tensor(10.0), atol=4) for clip in clips)


def test_held_out_files_are_never_trained_on(pictures: Path) -> None:
    def files(rgb_BFHWC: torch.Tensor) -> set[int]:
        return {round(float(clip[..., 0].float().mean()) / 4) for clip in rgb_BFHWC}

    trained, held = split_rows(open_shards(pictures), one_in=4)
    assert sorted([*trained, *held]) == list(range(COUNT)) and 5 < len(held) < 30
    held_out = held_out_clips(str(pictures), 100, 5, 32)
    source = batches(pictures)
    seen = set().union(*(files(source[step]) for step in range(60)))
    assert len(held_out) == len(files(held_out)) and not files(held_out) & seen
    assert len(seen) + len(held_out) == COUNT
    assert torch.equal(held_out_clips(str(pictures), 1, 5, 32), held_out[:1])


def test_short_clips_turn_back(pictures: Path) -> None:
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None]
    assert stretched(frames, 8).ravel().tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert stretched(frames, 2).ravel().tolist() == [0, 1]
    assert stretched(frames[:1], 3).ravel().tolist() == [0, 0, 0]
    assert batches(pictures, frames=17)[0].shape[1] == 17


def test_wrong_shards(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 64x64, got smaller ones"):
        PixelBatches(str(pictures), 2, 5, 64, 0)
    row = {"codes": b"\0\0", "T": 1, "H": 1, "W": 1, "captions": ["x"], "fps": 8.0, "frames": 1, "source": "x", "start": 0.0}
    write_shard(tmp_path / "000000.parquet", CODES, "t", [{**row, "mirrored": False, "tokenizer": "t"}], [])
    with pytest.raises(ValueError, match="trained on pictures, got codes"):
        PixelBatches(str(tmp_path), 2, 5, 32, 0)

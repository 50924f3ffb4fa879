"""The run log: lines that can be read back, pictures, progress with the time left; and the meter."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lumos.ranks import ALONE
from lumos.training.metrics import Meter, RunLog
from lumos.training.step_cost import CARDS, Work, flops
from tests.training.toys import TOY


def test_a_resumed_log_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.scalars(step, {"loss": 1.0 / step})
        log.picture(7, "clip", Image.new("RGB", (20, 10), "red"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    with RunLog(tmp_path, step=20) as log:
        log.scalars(30, {"loss": 7.0, "psnr": 3.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.05}, {"step": 30, "loss": 7.0, "psnr": 3.0}]
    with Image.open(tmp_path / "samples" / "clip_00000007.png") as saved:
        assert saved.size == (20, 10)


def test_a_disabled_log_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with RunLog(run, enabled=False) as log:
        log.scalars(1, {"loss": 1.0})
        log.progress(1, 0.5, "loss 1")
        log.say("hello")
        log.picture(1, "clip", Image.new("RGB", (4, 4)))
    assert not run.exists() and capsys.readouterr() == ("", "")


def test_plain_progress_tells_rate_and_time_left_but_not_too_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with RunLog(tmp_path, now=lambda: now[0]) as log:
        for step in range(1, 31):
            log.progress(step, step / 100, "loss 0.5")
            now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "  1%  step 1  loss 0.5",
        " 11%  step 11  loss 0.5  1.0 steps/s  0:01:29 left",
        " 21%  step 21  loss 0.5  1.0 steps/s  0:01:19 left",
    ]


def test_a_terminal_s_line_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with RunLog(tmp_path, now=lambda: 0.0) as log:
        log.progress(1, 0.5, "a")
        log.say("b")
        log.progress(2, 0.6, "c")
    assert capsys.readouterr().err == "\r\x1b[K 50%  step 1  a\r\x1b[Kb\n\r\x1b[K 60%  step 2  c\n"


def test_the_meter_gives_means_by_frame_and_rates() -> None:
    now = [0.0]
    meter = Meter(TOY.model, ALONE, now=lambda: now[0])
    meter.card = CARDS["H100"]
    work = Work(samples=4, text=5, frame=10, frames=2, targets=3, codes=9)  # 25 ids of a sample
    meter.add(False, torch.tensor([1.0, 3.0]), torch.tensor(2.0), work, waited=0.5)
    meter.add(False, torch.tensor([2.0, 4.0]), torch.tensor(float("nan")), work, waited=0.0)
    meter.add(True, torch.tensor([7.0]), torch.tensor(4.0), replace(work, samples=8, frames=1), waited=0.5)
    meter.add(False, torch.full((2,), float("nan")), torch.tensor(3.0), replace(work, samples=0), waited=0.0)
    now[0] = 10.0
    means = {"gradient_norm": 3.0, "loss_video": 2.5, "loss_frame_0": 1.5, "loss_frame_1": 3.5, "loss_image": 7.0}
    video, image = sum(flops(TOY.model, work)), sum(flops(TOY.model, replace(work, samples=8, frames=1)))
    rates = {"samples_per_second": 1.6, "ids_per_second": 32.0, "data_wait": 0.1}
    assert meter.take() == means | rates | {"mfu": pytest.approx((2 * video + image) / 10 / 989e12)}
    meter.add(True, torch.tensor([1.0]), torch.tensor(1.0), replace(work, samples=1), waited=0.0)
    now[0] = 11.0
    assert meter.take()["ids_per_second"] == 25.0

"""What a run tells about itself: RUN/metrics.jsonl, pictures, a progress line.

The progress line goes to stderr: one that is written over on a terminal, otherwise a new one now and then.
"""

import json
import sys
import time
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lumos.files import read_lines, write_text, writing
from lumos.model.transformer import ModelConfig
from lumos.ranks import Ranks, average
from lumos.training.clock import Timer
from lumos.training.step_cost import Work, card_named, flops

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
CLEAR = "\r\x1b[K"  # back to the start of the terminal's line, and wipe it


class RunLog:
    """The log of one run. A disabled one (all ranks but the first) does nothing. `step` is where a resumed run goes on."""

    def __init__(self, run: Path, step: int = 0, enabled: bool = True, now: Timer = time.monotonic) -> None:
        self.lines, self.samples, self.enabled, self._now = run / "metrics.jsonl", run / "samples", enabled, now
        self._start: tuple[float, int, float] | None = None  # time, step and progress of the first call
        self._spoken = -PLAIN_SECONDS
        self._begin, self._end, self._every = (CLEAR, "", 0.0) if sys.stderr.isatty() else ("", "\n", PLAIN_SECONDS)
        if enabled:
            # what a killed run logged after the checkpoint it resumes from, a half-written last line included, is dropped
            kept = [line for line in read_lines(self.lines) if not (isinstance(line.get("step"), int) and line["step"] > step)]
            write_text(self.lines, "".join(json.dumps(line) + "\n" for line in kept))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, {"step": ..., name: value, ...}."""
        if self.enabled:
            with writing(self.lines), self.lines.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def picture(self, step: int, name: str, picture: Image) -> None:
        """Save RUN/samples/NAME_STEP.png."""
        if self.enabled:
            self.samples.mkdir(exist_ok=True)
            picture.save(self.samples / f"{name}_{step:08d}.png")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.enabled:
            print(self._begin + text, file=sys.stderr, flush=True)

    def progress(self, step: int, progress: float, text: str) -> None:
        """Show the progress (0 to 1) of the run, `text` (such as "loss 0.12"), and rate and time left, both since the first call:
        what came before it was compilation or another process's work."""
        now = self._now()
        begin, first_step, first_progress = self._start = self._start or (now, step, progress)
        line = f"{min(1.0, progress):4.0%}  step {step}  {text}"
        if now > begin and progress > first_progress:
            left = round((now - begin) * max(0.0, 1 - progress) / (progress - first_progress))
            rate = (step - first_step) / (now - begin)
            line += f"  {rate:.1f} steps/s  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        if self.enabled and now - self._spoken >= self._every:
            self._spoken = now
            print(self._begin + line, end=self._end, file=sys.stderr, flush=True)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled and self._start is not None and not self._end:
            print(file=sys.stderr)


class Meter:
    """Sums on the device between two log lines; reading them is the only wait."""

    def __init__(self, model: ModelConfig, ranks: Ranks, now: Timer = time.monotonic) -> None:
        self.model, self.ranks, self._now = model, ranks, now
        self.card = card_named(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
        self._reset()

    def _reset(self) -> None:
        self.losses: dict[bool, list[Tensor]] = {False: [], True: []}
        self.norms: list[Tensor] = []
        self.since, self.samples, self.ids, self.flops, self.waited = self._now(), 0, 0, 0.0, 0.0

    def add(self, image: bool, loss_T: Tensor, norm: Tensor, work: Work, waited: float) -> None:
        """One step of this rank: its losses by latent frame, gradient norm and work; seconds without data."""
        self.losses[image].append(loss_T)
        self.norms.append(norm)
        self.samples += work.samples
        self.ids += work.samples * work.ids
        self.flops += sum(flops(self.model, work))
        self.waited += waited

    def take(self) -> dict[str, float]:
        """Means and rates over all ranks since the last call, by the names of docs/training.md. A step that was skipped as no
        number counts in none of the means."""
        values = {"gradient_norm": float(torch.stack(self.norms).nanmean())}
        for image, name in ((False, "loss_video"), (True, "loss_image")):
            if self.losses[image]:
                loss_ST = pad_sequence(self.losses[image], batch_first=True, padding_value=float("nan"))
                loss_T = average(loss_ST.nanmean(dim=0), self.ranks).tolist()
                values[name] = sum(loss_T) / len(loss_T)
                values |= {} if image else {f"loss_frame_{number}": value for number, value in enumerate(loss_T)}
        seconds, world = self._now() - self.since, self.ranks.world
        values |= {"samples_per_second": self.samples * world / seconds, "ids_per_second": self.ids * world / seconds}
        values["data_wait"] = self.waited / seconds
        if self.ranks.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.ranks.device) / 2**30
        if self.card is not None:
            values["mfu"] = self.flops / seconds / (self.card.peak * 1e12)
        self._reset()
        return values

"""Training, sampling and judging need no PyAV, which rented machines with cards seldom have."""

import subprocess
import sys


def test_training_sampling_and_judging_load_without_pyav() -> None:
    modules = (
        "lumos.training.train_model, lumos.training.train_tokenizer, lumos.generate, lumos.evaluation.run, lumos.media.video"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.modules['av'] = None; import {modules}"], check=True)

"""Videos made by two processes are those of one: divided frames, dealt prompts; and every end in words that all of them reach."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lumos.cli.main import main
from lumos.diffusion.compute import Compute
from lumos.diffusion.frame_model import FrameModel
from lumos.generate import Generator
from lumos.model_folder import load_model
from lumos.ranks import divide, finish, start
from lumos.sequence.token_file import load_tokens
from tests.toy_model import save_generator
from tests.training.toys import two

TWO_CARDS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
CASES: dict[str, dict[str, Any]] = {
    "guided, beyond the window": {"frames": 21},
    "guided in part of the steps": {"guidance_until": 0.5},
    "visible history, fixed order": {"only_visible": True, "sampler": "halton"},
    "from an image, to another": {"given": torch.zeros(3, 1, 32, 32), "keyframes": {8: torch.ones(3, 32, 32)}},
}


@pytest.fixture(scope="module")
def folder(sub_toy: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 32x32 videos, 9 frames, of codes with two sub-codes; fewer heads of keys than processes."""
    assert sub_toy.model.config.sub_codes == 4
    return save_generator(tmp_path_factory.mktemp("weights") / "toy", sub_toy)


def codes(folder: Path, compute: Compute, prompts: list[str], case: dict[str, Any], device: str = "cpu") -> Tensor:
    config, model, text, tokenizer = load_model(folder, device)
    generator = Generator(config, model, text, tokenizer, torch.device(device), torch.float32, compute)
    record: list[Tensor] = []
    for _ in generator.stream(prompts, record=record, **case):
        pass
    return torch.stack(record, dim=1).cpu()


def divided_work(rank: int, folder: Path, out: Path, device: str) -> None:
    ranks = start(device)
    here = str(ranks.device)
    x = torch.arange(10).view(2, 5)
    assert divide(5).mine(x, 1).tolist() == ([[0, 1, 2], [5, 6, 7]] if rank == 0 else [[3, 4, 4], [8, 9, 9]])
    assert divide(5).whole(divide(5).mine(x, 1), 1).equal(x)
    compute = Compute(divided=True)
    torch.save([codes(folder, compute, ["a red circle", "two"], case, here) for case in CASES.values()], out / f"codes {rank}")
    said = []
    differing = ({"prompts": ["a", "two"][rank]}, {"seed": rank}, {"given": torch.full((3, 1, 32, 32), rank - 0.5)})
    for wish in ({"prompts": "a"} | differ for differ in differing):
        try:
            codes(folder, compute, [wish.pop("prompts")], wish, here)
        except ValueError as error:
            said.append(str(error))
    (out / f"said {rank}").write_text(json.dumps(said))
    finish(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, TWO_CARDS])])
def test_a_video_divided_among_two_has_the_codes_of_one(folder: Path, tmp_path: Path, device: str) -> None:
    assert two(divided_work, folder, tmp_path, device) == [0, 0]
    alone = [codes(folder, Compute(), ["a red circle", "two"], case, device) for case in CASES.values()]
    for rank in (0, 1):
        for name, found, expected in zip(CASES, torch.load(tmp_path / f"codes {rank}"), alone, strict=True):
            assert found.equal(expected) and len(expected.unique()) > 4, name
        said = json.loads((tmp_path / f"said {rank}").read_text())
        assert len(said) == 3 and all("those of process 1 differ from those of process 0" in line for line in said)


PROMPTS = ["a red circle", "two blue stars", "a"]


def command_work(rank: int, folder: Path, out: Path) -> None:
    usual = ["generate", "--weights", str(folder), "--device", "cpu", "--out", str(out / "x.webp")]
    (out / f"prompts {rank}").write_text("\n".join(PROMPTS))
    dealt = ["--prompts", str(out / f"prompts {rank}"), "--save-tokens", str(out / "x.safetensors"), "--json"]
    said = [run(*usual, "a red circle"), run(*usual, *dealt), run(*usual, "a"), run(*usual, "a", "--device", "cuda:1")]
    commit = FrameModel.commit

    def killed(self: FrameModel, number: int, codes_BN: Tensor) -> None:
        (out / f"said {rank}").write_text(json.dumps(said))
        if rank == 1:
            os._exit(9)
        commit(self, number, codes_BN)

    FrameModel.commit = killed  # type: ignore[method-assign]
    said.append(run(*usual, "a", "--force"))
    (out / f"said {rank}").write_text(json.dumps(said))


def run(*words: str) -> tuple[int | str | None, str, str]:
    """What a command ends with, and says."""
    told, warned = io.StringIO(), io.StringIO()
    torch.cpu._is_avx512_bf16_supported = lambda: False
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(warned):
        try:
            code: int | str | None = main(words)
        except SystemExit as end:
            code = end.code
    if dist.is_initialized():
        dist.destroy_process_group()
    return code, told.getvalue(), warned.getvalue()


@pytest.mark.slow
def test_the_command_of_two_makes_the_files_of_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (both := tmp_path / "both").mkdir(), (alone := tmp_path / "alone").mkdir()
    assert two(command_work, folder, both) == [0, 9]
    first, second = (json.loads((both / f"said {rank}").read_text()) for rank in (0, 1))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    usual = ["generate", "--weights", str(folder), "--device", "cpu", "--out", str(alone / "x.webp"), "a red circle"]
    expected = run(*usual)
    assert [code for code, _, _ in first] == [0, 0, 2, 2, 2] and first[0][1].startswith(f"wrote: {both / 'x.webp'}")
    assert expected[0] == 0 and (both / "x.webp").read_bytes() == (alone / "x.webp").read_bytes()
    # prompts that were dealt out
    document = json.loads(first[1][1])
    assert document["prompts"] == PROMPTS and [Path(file).name for file in document["files"]] == [
        "x_1.webp",
        "x_2.webp",
        "x_3.webp",
    ]
    (alone / "prompts").write_text("\n".join(PROMPTS))
    assert run(*usual[:-1], "--prompts", str(alone / "prompts"), "--save-tokens", str(alone / "x.safetensors"))[0] == 0
    for number in (1, 2, 3):
        assert (both / f"x_{number}.webp").read_bytes() == (alone / f"x_{number}.webp").read_bytes()
    _, _, _, tokenizer = load_model(folder)
    found, wanted = (load_tokens(at / "x.safetensors", tokenizer, tokenizer.codebook_size) for at in (both, alone))
    assert found.about == wanted.about and found.codes_BTHW.equal(wanted.codes_BTHW)
    # the second process says nothing but what is its own
    assert second == [[0, "", ""], [0, "", ""], [2, "", ""], first[3]]
    assert first[2][2] == f"lumos: {both / 'x.webp'} exists; use another name or --force to replace it\n"
    assert first[3][2].startswith("lumos: device must be cpu or cuda where torchrun deals out the cards, got cuda:1")
    assert first[4][2] == "lumos: all 2 processes must go on together, but one has gone; give the command again\n"
    assert {path.name for path in both.glob("*.webp")} == {"x.webp", "x_1.webp", "x_2.webp", "x_3.webp"}
    assert not list(both.glob(".*"))


def test_a_process_that_waits_for_a_card_ends_at_sigterm_in_one_line() -> None:
    words = "import os, signal, threading, torch; from lumos.ranks import Ranks, leave_when_told; import sys\n"
    words += "leave_when_told(Ranks(int(sys.argv[1]), 2, torch.device('cpu')))\n"
    words += "signal.raise_signal(signal.SIGTERM); threading.Event().wait()"
    ends = [subprocess.run([sys.executable, "-c", words, rank], capture_output=True, text=True, timeout=60) for rank in "01"]
    assert [end.returncode for end in ends] == [2, 2] and ends[1].stderr == ""
    assert ends[0].stderr == "lumos: ended with one of 2 processes, all of which must go on together\n"


def test_a_process_needs_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match="every process needs a GPU, got 5 for 4; lower --nproc-per-node"):
        start("cuda")


@pytest.mark.parametrize(("causal", "world", "most"), [(False, 25, 24), (True, 2, 1)])
def test_more_processes_than_can_share_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, causal: bool, world: int, most: int
) -> None:
    monkeypatch.setattr("lumos.diffusion.frame_model.divide", lambda count, is_shared: replace(divide(count), world=world))
    monkeypatch.setattr("lumos.diffusion.frame_model.check_alike", lambda what: None)
    config, model, text, tokenizer = load_model(folder)
    config = replace(config, model=replace(config.model, causal=causal))
    model.config = config.model
    generator = Generator(config, model, text, tokenizer, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=f"processes must be at most {most} for one video .*, got {world}; lower --nproc"):
        generator("a")

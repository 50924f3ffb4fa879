"""Sessions: what nobody steers is what the generator makes; copies, files and steps back are exact; a sentence acts at once."""

import json
import weakref
from copy import copy
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import lumos.diffusion.frame_model as frame_model
import lumos.session as sessions
from lumos.diffusion.frame_model import FrameModel
from lumos.generate import Generator
from lumos.session import Session, Turn, make_next

PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
LONG = 13  # latent frames: far beyond the toy's positions (3), and more than its two layers reach back


def take(session: Session, count: int) -> Tensor:
    return torch.cat(list(islice(session, count)), dim=2)


@pytest.mark.parametrize(
    "settings", [{}, {"window": 2, "only_visible": True}, {"sampler": "released"}, {"sampler": "halton", "guidance_until": 0.5}]
)
@pytest.mark.parametrize("given", [0, 1, 17])
def test_a_session_that_nobody_steers_is_the_video_that_the_generator_makes(
    toy: Generator, settings: dict[str, Any], given: int
) -> None:
    start = PICTURE[:, None].repeat(1, given, 1, 1) if given else None
    keyframes = {12: PICTURE} if given < 2 else None
    whole = toy("a red circle", frames=1 + 4 * (LONG - 1), seed=3, given=start, keyframes=keyframes, **settings)
    session = toy.session("a red circle", seed=3, given=start, keyframes=keyframes, **settings)
    assert torch.equal(take(session, LONG), whole)
    assert session.frames == whole.shape[2] and session.sentences == [(given, "a red circle")]


@pytest.mark.parametrize("at", [2, 6, LONG])
@pytest.mark.parametrize("steered", [False, True])
def test_copies_and_files_go_on_with_the_same_frames(toy: Generator, tmp_path: Path, at: int, steered: bool) -> None:
    session = toy.session("a red circle", seed=3, given=PICTURE[:, None], keyframes={11: PICTURE}, guidance=1.5)
    take(session, at - 1)
    if steered:
        session.say("two blue stars")
    take(session, 1)
    session.save(tmp_path / "s.safetensors", overwrite=True)
    with pytest.raises(FileExistsError, match="exists"):
        session.save(tmp_path / "s.safetensors")
    copies = [session.fork(), toy.load_session(tmp_path / "s.safetensors")]
    wanted = take(session, 4)
    for other in copies:
        assert torch.equal(take(other, 4), wanted)
        assert other.sentences == session.sentences and other.course == session.course
    copies[0].say("two")
    assert not torch.equal(take(copies[0], 1), take(session, 1))
    assert session.sentences == copies[1].sentences


@pytest.mark.parametrize(
    "settings", [{"first": 0.5}, {"window": 2, "only_visible": True}, {"sampler": "released"}, {"guidance_until": 0.5}]
)
def test_sessions_side_by_side_are_what_each_is_alone(
    toy: Generator, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At different latent frames, with other words, after a sentence, with a picture to come."""
    keyframes: list[dict[int, Tensor]] = [{}, {11: PICTURE}, {}, {}]
    starts = zip(["a red circle", "two", "two blue stars", "two"], keyframes, strict=True)
    some = [toy.session(prompt, seed=seed, keyframes=at, **settings) for seed, (prompt, at) in enumerate(starts)]
    for session, count in zip(some, (5, 2, LONG, 1), strict=True):
        take(session, count)
    some[2].say("a blue circle")
    alone = [session.fork() for session in some]
    rows: list[int] = []
    run = frame_model.frame_pass
    monkeypatch.setattr(frame_model, "frame_pass", lambda *rest: rows.append(len(rest[2].cos_BLK)) or run(*rest))
    for _ in range(3):
        make_next([*some, some[0]])
        make_next(some)  # nothing that is not shown yet is made again
        assert [len(session.codes) - session.course.shown for session in some] == [1] * 4
        for session in some:
            next(session)
    assert max(rows) == 8 and len({len(session.codes) for session in some}) == 4
    for session, single in zip(some, alone, strict=True):
        take(single, 3)
        assert torch.equal(torch.stack(session.codes), torch.stack(single.codes))


def test_only_sessions_alike_share_a_batch(toy: Generator) -> None:
    settings: list[dict[str, Any]] = [{}, {"height": 64}, {"guidance": 1.0}, {"sampler": "released"}, {"first": 2.0}]
    some = [toy.session("two", **each) for each in settings]
    other, watched = copy(toy).session("two"), toy.session("two")  # another Generator, and one that somebody follows
    watched.progress = print
    assert len({session._shape() for session in [*some, other, watched]}) == 7
    make_next(some)
    again = [toy.session("two", **each) for each in settings]
    same = [one._shape() == other._shape() for one, other in zip(some, again, strict=True)]
    assert same == [True, True, True, False, False]  # a frame further
    assert all(torch.equal(next(one), next(other)) for one, other in zip(some, again, strict=True))


def test_who_interrupts_a_batch_leaves_all_as_they_were(toy: Generator) -> None:
    some = [toy.session(prompt) for prompt in ("two", "a red circle")]
    make_next(some)
    steps: list[tuple[int, int]] = []

    def stop(done: int, of: int) -> None:
        steps.append((done, of))
        if done == 2:
            raise KeyboardInterrupt

    for session in some:
        next(session)
    single = some[0].fork()
    for session in some:
        session.progress = stop
    with pytest.raises(KeyboardInterrupt):
        make_next(some)
    assert steps == [(1, 3), (2, 3)] and [len(session.codes) for session in some] == [1, 1]
    some[0].progress = None
    assert torch.equal(next(some[0]), next(single))


def test_a_session_does_not_keep_what_others_hold(toy: Generator) -> None:
    some = [toy.session("two") for _ in range(2)]
    make_next(some)
    assert some[0].codes[0].untyped_storage().nbytes() == some[0].codes[0].nbytes
    model = some.pop()._model
    cache = weakref.ref(model.cache) if model else None
    del model
    assert cache and cache() is None


def test_what_fails_while_a_part_begins_can_be_tried_again(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session("a red circle", seed=3)
    take(session, 4)  # the next latent frame begins a part
    wanted = take(session.fork(), 3)
    with monkeypatch.context() as patch:
        patch.setattr(toy.tokenizer, "encode", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            take(session, 1)
    assert torch.equal(take(session, 3), wanted)


def test_a_sentence_takes_effect_with_the_next_latent_frame(toy: Generator) -> None:
    session = toy.session("a red circle", seed=3)
    take(session, 5)
    same, other = session.fork(), session.fork()
    same.say("two")
    same.say("a red circle")  # taken back in time
    other.say("two")
    other.say("two blue stars")
    wanted = take(session, 1)
    assert torch.equal(take(same, 1), wanted) and same.sentences == [(0, "a red circle")]
    assert not torch.equal(take(other, 1), wanted) and other.sentences == [(0, "a red circle"), (17, "two blue stars")]


def test_a_sentence_begins_a_video_from_the_newest_picture(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where a video's first is. Nothing before it is seen, nor keyframes that have passed."""
    session = toy.session("a red circle", seed=3, keyframes={11: PICTURE})
    take(session, LONG)
    session.say("two blue stars")
    blank, turn = torch.zeros_like(session.codes[0]), Turn(LONG, "two blue stars", 3, origin=LONG - 1)
    course, codes = replace(session.course, turns=(turn,), keyframes=()), [*[blank] * (LONG - 1), session.codes[-1]]
    again = Session(session.model_of, session.read_prompt, toy.tokenizer, session.spec, course, codes)
    again._player.pictures.update(session._player.pictures)
    places: list[int] = []
    rotation = FrameModel._rotation
    with monkeypatch.context() as patch:
        patch.setattr(FrameModel, "_rotation", lambda model, latent: places.append(latent) or rotation(model, latent))
        take(session, 5)
    # of the frame that is read again, and of each that is made; the next part begins with the last two
    assert places == [0, 1, 2, 3, *[0, 1], 2, 3]
    take(again, 3)
    assert torch.equal(torch.stack(again.codes[LONG:]), torch.stack(session.codes[LONG : LONG + 3]))


def test_of_the_picture_before_a_sentence_little_is_seen(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session("a red circle", seed=3, history=0.5)
    take(session, 3)
    session.say("two")
    hidden, seen = FrameModel._hidden, []

    def watch(model: FrameModel, number: int, is_given: bool) -> Tensor:
        seen.append((number, int(hidden(model, number, is_given).sum())))
        return hidden(model, number, is_given)

    monkeypatch.setattr(FrameModel, "_hidden", watch)
    take(session, 2)
    assert seen == [(2, 19), (3, 10)]  # of 20 places 97 and 50 percent


def test_pictures_of_later_frames_come_at_their_time_after_a_sentence(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session("a red circle", seed=3, keyframes={11: PICTURE})
    take(session, 2)
    session.say("two")
    times: list[int] = []
    place = frame_model.key_positions
    monkeypatch.setattr(frame_model, "key_positions", lambda *rest: times.append(int(rest[2][0])) or place(*rest))
    take(session, 1)
    assert times == [11 - 4]


def test_steps_back(toy: Generator) -> None:
    session = toy.session("a red circle", seed=3)
    first = take(session, 2)
    session.say("two")
    take(session, 3)
    whole = [codes_HW.clone() for codes_HW in session.codes]
    session.back(8)
    assert session.frames == 9 and session.sentences == [(0, "a red circle"), (5, "two")]
    take(session, 2)
    assert all(torch.equal(one, other) for one, other in zip(session.codes[:3], whole, strict=False))
    assert not torch.equal(torch.stack(session.codes[3:]), torch.stack(whole[3:]))  # other seed
    session.back(12)
    assert session.sentences == [(0, "a red circle"), (5, "two")] and session.course.turns[1].start == 2
    session.back(0)
    assert session.course.turns[-1].origin == 1  # time goes on
    session.back(5)
    assert session.frames == 0 and not torch.equal(take(session, 2), first)
    assert session.course.turns[0].seed == 7


def test_wrong_steps_change_nothing(toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy.session("two", given=PICTURE[:, None])
    take(session, 3)
    before = session.course
    for frames in (-4, 3, 9, 12):
        with pytest.raises(ValueError, match=rf"multiple of 4 up to the 8 made here, or all, got {frames}"):
            session.back(frames)
    for prompt, words in ((" ", "must say something"), ("a red circle moves " * 5, "at most 10 text ids")):
        with pytest.raises(ValueError, match=words):
            session.say(prompt)
        with pytest.raises(ValueError, match=words):
            toy.session(prompt)
    monkeypatch.setattr(sessions, "MOST_TURNS", 1)
    with pytest.raises(ValueError, match="at most 1 sentences"):
        session.say("two blue stars")
    assert session.course == before
    with pytest.raises(ValueError, match="must have a frame"):
        toy.session("two").save(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="steps must be 1 to the 16 codes"):
        toy.session("two", steps=17)


def test_other_files_are_no_sessions(toy: Generator, tmp_path: Path) -> None:
    from lumos.sequence.token_file import save_tokens

    record: list[Tensor] = []
    toy("two", frames=5, record=record)
    tokens = toy.tokens(record, ["two"], 0)
    for about, words in ((tokens.about, "must be a session's"), (replace(tokens.about, course="{}"), "lacks the field")):
        save_tokens(tmp_path / "x.safetensors", replace(tokens, about=about))
        with pytest.raises(ValueError, match=words):
            toy.load_session(tmp_path / "x.safetensors")
    course = toy.session("two").course
    for changes in ({"shown": 3}, {"turns": (replace(course.turns[0], start=3),)}):
        text = json.dumps(asdict(replace(course, **changes)))
        save_tokens(tmp_path / "x.safetensors", replace(tokens, about=replace(tokens.about, course=text)))
        with pytest.raises(ValueError, match="frames that it speaks of"):
            toy.load_session(tmp_path / "x.safetensors")
    for codes_HW in (((0,) * 4,) * 3, ((0,) * 4, (0,) * 5) * 2, ((10**6,) * 4,) * 4):
        text = json.dumps(asdict(replace(course, keyframes=((4, codes_HW),))))
        save_tokens(tmp_path / "x.safetensors", replace(tokens, about=replace(tokens.about, course=text)))
        with pytest.raises(ValueError, match="keyframes of its own size and tokenizer"):
            toy.load_session(tmp_path / "x.safetensors")
    for turns in ((), course.turns * 2):
        with pytest.raises(ValueError, match="turns must start one after another"):
            replace(course, turns=turns)


def test_memory_stays_the_same(toy: Generator) -> None:
    session = toy.session("a red circle", seed=3)
    take(session, 4)
    model = session._model
    assert model is not None and session._player.state.memory is not None
    capacity, held = model.cache.capacity, sum(tensor.numel() for tensor in session._player.state.memory.values())
    take(session, LONG)
    assert session._model is model and model.cache.capacity == capacity
    assert sum(tensor.numel() for tensor in session._player.state.memory.values()) == held

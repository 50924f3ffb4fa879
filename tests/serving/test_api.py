"""The HTTP API over a real worker: what is asked comes out, whole or with words, whatever is sent."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lumos.media.video import write_video
from lumos.serving.request import VideoBody

LONG = {"frames": 129, "steps": 16}


def picture(width: int = 48, height: int = 48, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()


def frames_of(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_an_image_in_words_that_the_model_knows(server: Any) -> None:
    asked = server.make("a crimson circle", frames=1, steps=1)
    assert (asked["prompt"], asked["note"]) == ("a red circle", "does not know: crimson, reads it as red")
    assert server.finish(asked["id"])["status"] == "completed"
    answer = server.http.get(f"/v1/videos/{asked['id']}/content")
    assert answer.headers["content-type"] == "image/png" and Image.open(io.BytesIO(answer.content)).size == (32, 32)


def test_a_sentence_becomes_a_video_with_frames_on_the_way(server: Any) -> None:
    ahead = server.make(**LONG)  # until somebody listens
    asked = server.make("a red circle moves", frames=9, seed=7, steps=2)
    assert (asked["object"], asked["size"], asked["seconds"], asked["seed"]) == ("video", "32x32", "1.125", 7)
    events = server.events(asked["id"])
    news = [next(events)]
    server.http.post(f"/v1/videos/{ahead['id']}/cancel")
    news += events
    shown = [data for word, data in news if word == "frames"]
    assert [(data["index"], data["first_frame"], len(data["frames"])) for data in shown] == [(0, 0, 1), (1, 1, 4), (2, 5, 4)]
    assert all(data["frames"][0].startswith("data:image/webp;base64,") for data in shown)
    steps = [data["progress"] for word, data in news if word == "status"]
    assert steps == sorted(steps) and steps[-1] == 100
    last = news[-1][1]
    assert last["status"] == "completed" and last["error"] is None and last["expires_at"] > last["completed_at"]
    assert server.http.get(f"/v1/videos/{asked['id']}").json() == last

    content = f"/v1/videos/{asked['id']}/content"
    mp4 = server.http.get(content)
    assert mp4.headers["content-type"] == "video/mp4" and frames_of(mp4.content) == 9
    gif = server.http.get(content, params={"format": "gif", "download": "true"})
    assert gif.content[:3] == b"GIF" and "attachment" in gif.headers["content-disposition"]
    assert Image.open(io.BytesIO(server.http.get(content, params={"variant": "thumbnail"}).content)).size == (32, 32)
    large, again = (server.http.get(content, params={"variant": "large", "format": "png"}) for _ in range(2))
    assert Image.open(io.BytesIO(large.content)).width >= 512 and large.headers["etag"] == again.headers["etag"]
    sheet = server.http.get(content, params={"variant": "spritesheet"})
    assert sheet.headers["content-type"] == "image/png" and Image.open(io.BytesIO(sheet.content)).width > 64


def test_head_ranges_and_conditions_are_those_of_rfc_9110(server: Any) -> None:
    asked = server.make(frames=5, steps=1)
    server.finish(asked["id"])
    path = f"/v1/videos/{asked['id']}/content"
    whole = server.http.get(path)
    for known in (path, f"/v1/videos/{asked['id']}", f"/v1/videos/{asked['id']}/events", "/v1/videos", "/v1/models", "/",
                  "/health", "/v1/models/toy", "/live", "/metrics", "/docs", "/openapi.json", "/page.js", "/login"):  # fmt: skip
        answer = server.http.head(known)
        assert answer.status_code in (200, 303) and answer.content == b"", known
    assert server.http.head(path).headers["content-length"] == str(len(whole.content))
    assert server.http.head("/v1/videos/video_0").status_code == 404

    part = server.http.get(path, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    for ignored in ("bytes=banana", "pages=1-2", "bytes=9-4,", "bytes=9-4", "bytes=" + 5000 * "9" + "-", "4-7"):
        answer = server.http.get(path, headers={"Range": ignored})
        assert answer.status_code == 200 and answer.content == whole.content, ignored
    mixed = server.http.get(path, headers={"Range": f"bytes=4-7, {len(whole.content)}-"})
    assert (mixed.status_code, mixed.content) == (206, b"ftyp")
    for outside in (f"bytes={len(whole.content)}-", "bytes=-0"):
        answer = server.http.get(path, headers={"Range": outside})
        assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{len(whole.content)}"
        server.error(answer)

    tag, when = whole.headers["etag"], whole.headers["last-modified"]
    early = "Mon, 01 Jan 2001 00:00:00 GMT"
    for condition, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"', "If-Modified-Since": when}, 200),
        ({"If-Modified-Since": when}, 304),
        ({"If-Modified-Since": early}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": early}, 412),
        ({"If-Unmodified-Since": when}, 200),
        ({"If-Range": '"x"', "Range": "bytes=4-7"}, 200),
        ({"If-Range": tag, "Range": "bytes=4-7"}, 206),
    ):
        answer = server.http.get(path, headers=condition)
        assert answer.status_code == status, condition
        if status == 304:
            assert answer.content == b"" and answer.headers["etag"] == tag
        if status == 412:
            server.error(answer)


def test_the_same_seed_gives_the_same_file_and_no_seed_gives_others(server: Any) -> None:
    videos = [server.make(frames=5, **seed) for seed in ({"seed": 3}, {"seed": 3}, {}, {})]
    files = []
    for video in videos:
        server.finish(video["id"])
        files.append(server.http.get(f"/v1/videos/{video['id']}/content").content)
    assert files[0] == files[1] and len(set(files)) == 3
    assert videos[2]["seed"] != videos[3]["seed"]


def test_a_picture_comes_to_life_sent_with_the_request_or_before(server: Any) -> None:
    form = {"prompt": "a red circle", "frames": "5", "steps": "1", "guidance": "1.5", "seed": ""}
    answer = server.http.post("/v1/videos", data=form, files={"input_reference": ("../../x.png", picture())})
    video = answer.json()
    assert (video["given_frames"], video["steps"], video["guidance"]) == (1, 1, 1.5)
    assert "resized to 32x32" in video["note"] and "x.png" not in answer.text
    assert server.finish(video["id"])["status"] == "completed"

    upload = server.http.post("/v1/uploads", files={"file": picture(100, 50, "JPEG")}).json()
    assert upload["kind"] == "image" and upload["preview"].startswith("data:image/webp") and "cropped" in upload["note"]
    video = server.make(frames=5, input_reference={"file_id": upload["id"]}, size="64x32")
    assert server.finish(video["id"])["status"] == "completed" and video["size"] == "64x32"
    assert "trained at 32x32" in video["note"]


def test_a_video_is_continued_from_a_file_or_from_a_result(server: Any, tmp_path: Path) -> None:
    file = write_video(tmp_path / "start.mp4", torch.linspace(-1, 1, 7).view(1, 7, 1, 1).expand(3, 7, 40, 40), 8)
    preview = server.http.post("/v1/uploads", files={"file": file.read_bytes()}).json()["preview"].partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(preview))) as shown:
        shown.load()
        assert (shown.n_frames, shown.size) == (5, (32, 32))  # type: ignore[attr-defined]
        assert (shown.info["loop"], shown.info["duration"]) == (0, 125)
    answer = server.http.post("/v1/videos", data={"prompt": "a"}, files={"input_reference": file.read_bytes()})
    video = answer.json()
    assert (video["given_frames"], video["frames"]) == (5, 21) and "frames left out at the end: 2" in video["note"]
    assert server.finish(video["id"])["status"] == "completed"
    long = write_video(tmp_path / "long.mp4", torch.zeros(3, 126, 32, 32), 8).read_bytes()  # no room for four new ones
    refused = server.http.post("/v1/uploads", files={"file": long})
    assert refused.status_code == 400 and "at most 125 frames" in server.error(refused)["message"]
    more = server.make("a", input_reference={"file_id": video["id"]}, frames=25)
    assert (more["given_frames"], more["remixed_from_video_id"]) == (21, video["id"])
    assert server.finish(more["id"])["status"] == "completed"
    assert frames_of(server.http.get(f"/v1/videos/{more['id']}/content").content) == 25


def test_pictures_of_later_frames_are_taken_with_the_request_or_before(server: Any, files: dict[str, str]) -> None:
    end, upload = {"last_image": {"file_id": files["picture"]}}, files["picture"]
    for given, frames in ((end, [8]), ({"keyframes": {"0.25s": upload, "7": upload}} | end, [2, 7, 8])):
        video = server.make(frames=9, steps=1, input_reference={"file_id": upload}, **given)
        assert (video["given_frames"], video["keyframes"]) == (1, frames)
        assert server.finish(video["id"])["status"] == "completed"
    form = {"prompt": "a red circle", "frames": "9", "steps": "1", "input_reference": upload}
    video = server.http.post("/v1/videos", data=form, files={"last_image": picture(100, 50)}).json()
    assert video["keyframes"] == [8] and video["note"].count("resized to 32x32") == 2
    assert server.finish(video["id"])["status"] == "completed"


@pytest.fixture(scope="module")
def files(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ids of uploads."""
    clip = write_video(tmp_path_factory.mktemp("clip") / "x.mp4", torch.zeros(3, 5, 32, 32), 8).read_bytes()
    sent = {"picture": picture(), "video": clip}
    return {name: server.http.post("/v1/uploads", files={"file": file}).json()["id"] for name, file in sent.items()}


LAST: dict[str, Any] = {"last_image": {"file_id": "picture"}}
WRONG_KEYFRAMES: list[tuple[dict[str, Any], str, str]] = [
    ({"keyframes": {"9": "picture"}}, "keyframes", "at most at the last frame, 8, got 9"),
    ({"keyframes": {"2s": "picture"}}, "keyframes", "got 16; use another time or more frames"),
    ({"keyframes": {"0": "picture"}}, "keyframes", "after frame 0"),
    ({"keyframes": {"4": "picture"}, "input_reference": {"file_id": "video"}}, "keyframes", "after frame 4"),
    ({"keyframes": {"4.5": "picture"}}, "keyframes", "seconds, such as 2s, or the number of a frame, such as 16, got '4.5'"),
    ({"keyframes": {"-1": "picture"}}, "keyframes", "got '-1'"),
    ({"keyframes": {"1s": "picture", "8": "picture"}}, "keyframes", "two for frame 8"),
    ({"keyframes": {"8": "picture"}} | LAST, "keyframes", "two for frame 8"),
    ({"frames": 1} | LAST, "last_image", "more than its first frame, got 1"),
    ({"keyframes": {"4": "video"}}, "keyframes", "must be a picture here, got a video"),
    ({"last_image": {"file_id": "video"}}, "last_image", "must be a picture here, got a video"),
    ({"keyframes": {"4": "upload_0"}}, "keyframes", "no such upload"),
    ({"keyframes": {str(at): "picture" for at in range(1, 10)}}, "keyframes", "at most 8"),
    ({"keyframes": ["picture"]}, "keyframes", "should be an object"),
    ({"keyframes": {"4": 5}}, "keyframes", "should be a valid string, got 5"),
]


@pytest.mark.parametrize(("asked", "field", "says"), WRONG_KEYFRAMES, ids=range(len(WRONG_KEYFRAMES)))
def test_what_is_wrong_with_pictures_of_later_frames_is_said(
    server: Any, files: dict[str, str], asked: dict[str, Any], field: str, says: str
) -> None:
    words = json.dumps({"prompt": "a", "frames": 9} | asked)
    for name, id in files.items():
        words = words.replace(f'"{name}"', f'"{id}"')
    answer = server.http.post("/v1/videos", content=words, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = server.error(answer)
    assert error["param"] == field and says in error["message"]


def test_lists_are_of_one_client(server: Any) -> None:
    mine, other = {"X-Client-Id": "list one"}, {"X-Client-Id": "list two"}
    ids = [server.http.post("/v1/videos", json={"prompt": "a", "frames": 1}, headers=mine).json()["id"] for _ in range(3)]
    for id in ids:
        server.finish(id)
    listed = server.http.get("/v1/videos", headers=mine, params={"order": "asc", "limit": 2}).json()
    assert [video["id"] for video in listed["data"]] == [listed["first_id"], listed["last_id"]] == ids[:2] and listed["has_more"]
    after = server.http.get("/v1/videos", headers=mine, params={"order": "asc", "after": ids[1]}).json()
    assert [video["id"] for video in after["data"]] == ids[2:] and not after["has_more"]
    newest = server.http.get("/v1/videos", headers=mine).json()
    assert [video["id"] for video in newest["data"]] == ids[::-1]
    assert server.http.get("/v1/videos", headers=other).json()["data"] == []
    for unknown in ("video_0", ""):
        answer = server.http.get("/v1/videos", headers=mine, params={"after": unknown})
        assert answer.status_code == 400 and server.error(answer)["param"] == "after"


def test_cancel_and_delete_at_any_time(server: Any) -> None:
    first, second, third = (server.make("a", **LONG) for _ in range(3))
    assert server.http.get(f"/v1/videos/{third['id']}").json()["queue_position"] == 2
    assert server.http.get(f"/v1/videos/{third['id']}/content").status_code == 409
    assert server.http.post(f"/v1/videos/{second['id']}/cancel").json()["error"]["code"] == "cancelled"
    assert server.http.delete(f"/v1/videos/{first['id']}").json()["deleted"] is True
    assert server.http.get(f"/v1/videos/{first['id']}").status_code == 404
    for last, index in (("", 0), ("0", 1)):  # it is its turn; and after a lost connection
        assert next(data for word, data in server.events(third["id"], last) if word == "frames")["index"] == index
    server.http.post(f"/v1/videos/{third['id']}/cancel")
    assert server.finish(third["id"])["status"] == "failed"
    quick = server.make("a", frames=1)
    assert server.finish(quick["id"])["status"] == "completed"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": " \n"}, "words"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "a\x00b"}, "control"),
    ({"prompt": "a " * 100}, "text ids"),
    ({"prompt": "a", "frames": 6}, "1 + 4k, got 6; use 9"),
    ({"prompt": "a", "frames": 0}, "use 1"),
    ({"prompt": "a", "frames": "5"}, "frames"),
    ({"prompt": "a", "frames": 5, "seconds": "4"}, "both"),
    ({"prompt": "a", "seconds": "nan"}, "seconds"),
    ({"prompt": "a", "seconds": "60"}, "at most 129 frames"),
    ({"prompt": "a", "size": "banana"}, "WIDTHxHEIGHT"),
    ({"prompt": "a", "size": "33x32"}, "multiples of 32"),
    ({"prompt": "a", "size": "1024x1024"}, "pixels"),
    ({"prompt": "a", "steps": 17}, "at most 16"),
    ({"prompt": "a", "model": "m" * 99}, f"got '{56 * 'm'}..."),
    ({"prompt": "a", "framse": 5}, "unknown field 'framse'"),
    ({"prompt": "a", "input_reference": {"file_id": "../../etc/passwd"}}, "no such upload"),
    ({"prompt": "a", "input_reference": {"image_url": "http://localhost/"}}, "input_reference"),
]


# the field, the first value that is refused, and the last that is not
LIMITS = (
    ("prompt", "a" * 2001, "a" * 2000),
    ("model", "m" * 201, "m" * 200),
    ("seconds", 3601, 3600),
    ("seconds", 0, 0.1),
    ("size", "1" * 21, "1" * 20),
    ("frames", 10**6 + 1, 10**6),
    ("seed", -1, 0),
    ("seed", 2**32, 2**32 - 1),
    ("steps", 0, 1),
    ("guidance", -0.1, 0),
    ("guidance", 100.1, 100),
    ("temperature", 0.009, 0.01),
    ("temperature", 10.1, 10),
)


@pytest.mark.parametrize(("field", "refused", "taken"), LIMITS)
def test_limits_of_fields_are_where_they_are_said_to_be(field: str, refused: Any, taken: Any) -> None:
    VideoBody(**{"prompt": "a", field: taken})
    with pytest.raises(ValidationError, match=field):
        VideoBody(**{"prompt": "a", field: refused})


BROKEN = (b"", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 20000, b'{"prompt": "a", "seed": ' + b"9" * 10000 + b"}")
NOT_NUMBERS = (b'{"prompt": NaN}', b'{"prompt": "a", "guidance": Infinity}', b'{"prompt": "a", "guidance": 1e999}')


@pytest.mark.parametrize(
    ("body", "says"),
    [
        *((json.dumps(body).encode(), says) for body, says in WRONG),
        *((body, "JSON object") for body in BROKEN),
        *((body, "got") for body in NOT_NUMBERS),
    ],
    ids=range(len(WRONG) + len(BROKEN) + len(NOT_NUMBERS)),
)
def test_what_is_wrong_is_said(server: Any, body: bytes, says: str) -> None:
    answer = server.http.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert says in server.error(answer)["message"]


@pytest.mark.parametrize(
    ("fields", "files", "says"),
    [
        ({"prompt": ["a", "b"]}, {}, "prompt is given twice"),
        ({"prompt": "a", "input_reference": "upload_0"}, {"input_reference": b"x"}, "input_reference is given twice"),
        ({"prompt": "a"}, {"size": b"x"}, "size must not be a file; only input_reference and last_image may"),
        ({"prompt": "a"}, {"last_image": b"just text"}, "no picture"),
        ({"prompt": "a", "frames": "5.5"}, {}, "frames"),
        ({"prompt": ""}, {}, "words"),
        ({"prompt": "a", "frames": "1"}, {"input_reference": picture()}, "frames must be more than the 1 given ones"),
        ({"prompt": "a"}, {f"image{number}": picture() for number in range(9)}, "Too many files"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(server: Any, fields: dict[str, Any], files: dict[str, bytes], says: str) -> None:
    answer = server.http.post("/v1/videos", data=fields, files=files)
    assert answer.status_code == 400 and says in server.error(answer)["message"]


def huge_png() -> bytes:
    """A picture whose header says that it has 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    small = picture()
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: b"just text", "no picture"),
        (lambda: b"", "empty"),
        (lambda: picture()[:90], "damaged"),
        (lambda: picture(8, 8), "at least 16x16"),
        (huge_png, "pixels"),
        (lambda: b"\x00\x00\x00\x18ftypmp42" + bytes(500), "no picture"),
        (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no picture"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "no picture"),
    ],
    ids=["text", "empty", "cut", "small", "huge", "hollow mp4", "playlist", "svg"],
)
def test_bad_uploads_are_refused_in_words(server: Any, make: Callable[[], bytes], says: str) -> None:
    answer = server.http.post("/v1/uploads", files={"file": ("f.png", make())})
    assert answer.status_code == 400, answer.text
    assert says in server.error(answer)["message"]


def test_unknown_names_and_paths(server: Any) -> None:
    for id in ("video_0", "..%2f..%2fetc%2fpasswd", "%00", "a" * 300):
        for path in ("", "/content", "/events"):
            assert server.http.get(f"/v1/videos/{id}{path}").status_code == 404
        assert server.http.delete(f"/v1/videos/{id}").status_code == 404
    wrong = server.http.put("/v1/videos")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, HEAD, POST"
    assert server.error(wrong) and server.error(server.http.get("/v1/nothing"))["code"] == "not_found"
    model = server.http.get("/v1/models/toy").json()
    assert model["id"] == "toy" and model["max_steps"] == 16, "a step reveals at least one of 4 x 4 places"
    assert server.http.get("/v1/models/sora-2").status_code == 404
    assert server.http.get("/v1/videos", params={"limit": "many"}).status_code == 400

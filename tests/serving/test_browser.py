"""The page in a real Chromium, against a real server: what people do with it, and that it asks no other machine.

Skipped without Playwright (pip install playwright) or a Chromium (apt-get install chromium). Screenshots are kept in the folder
named by LUMOS_SCREENSHOTS, or else in pytest's temporary one.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lumos.media.video import write_video

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium")

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
STAGE = "#stage[data-state={}]"
WAIT = 30_000
KEY = "correct horse battery"
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP video.example.org 127.0.0.1"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def shoot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any, str], None]:
    folder = Path(os.environ.get("LUMOS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    yield from opened(browser, server, bypass_csp=True)  # wait_for_function evaluates words


def opened(browser: Any, server: Any, **settings: Any) -> Iterator[Any]:
    """A page that fails the test if it asks another machine or logs an error."""
    context = browser.new_context(**settings)
    page = context.new_page()
    strangers: list[str] = []
    faults: list[str] = []
    page.on(
        "request", lambda asked: strangers.append(asked.url) if not asked.url.startswith((server.url, "data:", "blob:")) else None
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()
    assert not strangers and not faults


def say(page: Any, prompt: str) -> None:
    page.fill("#prompt", prompt)


def make(page: Any, prompt: str) -> None:
    say(page, prompt)
    page.click("#create")


def done(page: Any) -> None:
    page.wait_for_selector(STAGE.format("done"), timeout=WAIT)
    page.wait_for_selector(".screen :is(video, img):not([hidden])")


def test_text_to_video_and_what_can_be_done_with_it(page: Any, shoot: Any) -> None:
    shoot(page, "empty")
    say(page, "a red circle moves")
    page.evaluate("[1, 2].forEach(() => document.querySelector('#form').requestSubmit())")  # Enter, twice: one video
    done(page)
    assert page.locator("#stage .strip li").count() == 3
    assert page.locator("#stage .strip li > *").count() == 3
    assert page.evaluate("document.querySelector('#stage video').loop") is True
    page.click("[data-do=loop]")
    assert page.evaluate("document.querySelector('#stage video').loop") is False
    with page.expect_download() as saved:
        page.click("[data-do=gif]")
    assert saved.value.suggested_filename.endswith(".gif")
    with Image.open(saved.value.path()) as gif:
        assert gif.size == (512, 512)
    assert page.locator("#gallery li").count() == 1
    shoot(page, "done")
    page.click("[data-do=again]")
    seed = page.inner_text("#stage .words").rpartition("seed ")[2]
    assert not page.is_checked("#vary") and page.input_value("#seed") == seed
    first = page.evaluate("document.querySelector('#stage video').src")
    page.click("#create")
    page.wait_for_function(
        f"document.querySelector('#stage video').src && document.querySelector('#stage video').src !== {first!r}"
    )
    assert page.inner_text("#stage .words").rpartition("seed ")[2] == seed
    cards = "document.querySelectorAll('#gallery li').length === {}"
    page.wait_for_function(cards.format(2))
    page.click("[data-do=delete]")
    page.wait_for_function(cards.format(1))
    page.click("#toast button")
    page.wait_for_function(cards.format(2))
    page.hover("#gallery li")
    page.click("#gallery .remove >> nth=0")
    page.wait_for_function(cards.format(1))
    page.reload()
    page.wait_for_function(cards.format(1))


def test_image_to_video(page: Any, shoot: Any, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((64, 40)).save(tmp_path / "photo.png")
    write_video(tmp_path / "moving.gif", torch.linspace(-1, 1, 5).view(1, 5, 1, 1).expand(3, 5, 32, 32), 8)
    page.click("#start label:has-text('Picture')")
    shoot(page, "pictures_empty")
    page.focus("[name=start]:checked")
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "photo.png"))  # one listener: none is missed between two
    for kind in ("image", "last"):  # by keyboard: Tab, then the space bar opens the browser's dialogue
        page.keyboard.press("Tab")
        page.wait_for_selector(f"#file-{kind}:focus", state="attached")
        page.keyboard.press("Space")
        page.wait_for_selector(f".drop.full[data-kind={kind}]", timeout=WAIT)
        page.keyboard.press("Tab")  # over the button that removes it
    assert "center-cropped" in page.inner_text(".drop[data-kind=image] small")
    shoot(page, "pictures")
    with page.expect_request("**/v1/videos") as asked:
        make(page, "a red circle")
    assert asked.value.post_data_json.keys() >= {"input_reference", "last_image"}
    done(page)
    assert page.inner_text("#stage .words").count("resized to 32x32") == 2 and not page.is_visible("[data-do=copy]")
    page.click("[data-kind=image] button")
    page.set_input_files("#file-last", tmp_path / "moving.gif")
    page.wait_for_function("document.querySelector('[data-kind=last] .problem').textContent.includes('choose a picture')")
    make(page, "a red circle")
    assert page.inner_text("#problem") == "Choose a picture first."


def test_a_result_and_a_file_are_continued(page: Any, tmp_path: Path) -> None:
    make(page, "a red circle")
    done(page)
    page.click("[data-do=continue]")
    page.wait_for_selector(".drop.full[data-kind=video]")
    page.click("#create")
    page.wait_for_function("document.querySelectorAll('#stage .strip li').length === 5")  # 17 frames: 9 and 8 new ones
    done(page)
    file = write_video(tmp_path / "clip.mp4", torch.zeros(3, 5, 32, 32), 8)
    page.set_input_files("#file-video", file)
    page.wait_for_function("document.querySelector('.drop[data-kind=video] b').textContent.startsWith('5 frames ready')")


def test_frames_appear_while_they_are_made_and_cancel(page: Any, shoot: Any) -> None:
    def longer(route: Any) -> None:
        route.continue_(post_data={**route.request.post_data_json, "frames": 129, "steps": 16})

    page.route("**/v1/videos", lambda route: longer(route) if route.request.method == "POST" else route.continue_())
    make(page, "a red circle")
    page.wait_for_selector(STAGE.format("making") + "[data-frames]", timeout=WAIT)
    page.wait_for_selector(".status[data-left*=' s left']")
    page.click("[data-do=cancel]")
    page.wait_for_selector(STAGE.format("failed"))
    assert page.inner_text("#stage .problem") == "Cancelled."


def test_reload_while_running(page: Any, server: Any) -> None:
    before = [server.make("a", frames=129, steps=16)["id"] for _ in range(6)]  # so that the page's video has to wait
    make(page, "two blue stars")
    waits = "document.querySelector('#stage .status')?.textContent.startsWith('Waiting: ')"
    page.wait_for_function(waits)
    page.reload()
    page.wait_for_function(waits)
    for id in before:
        server.http.post(f"/v1/videos/{id}/cancel")
    done(page)
    assert page.inner_text("#stage .words").startswith("two blue stars")


def test_a_bad_upload_and_a_bad_prompt_are_explained(page: Any, shoot: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("not a picture")
    page.click("#create")
    assert page.inner_text("#problem") == "Describe the video first."
    assert page.evaluate("document.querySelector('#problem').getBoundingClientRect().bottom <= innerHeight")
    make(page, "a " * 100)
    page.wait_for_function("document.querySelector('#problem').textContent.includes('text ids')")
    page.click("#start label:has-text('Picture')")
    make(page, "a")
    assert page.inner_text("#problem") == "Choose a picture first."
    page.set_input_files("#file-image", tmp_path / "photo.png")
    page.wait_for_function("document.querySelector('.drop[data-kind=image] .problem').textContent.includes('no picture')")
    shoot(page, "bad_upload")


def test_live_is_told_what_comes_next_and_goes_back(page: Any, shoot: Any, tmp_path: Path) -> None:
    page.click("#start label:has-text('Live')")
    make(page, "a " * 100)
    page.wait_for_function("document.querySelector('#problem').textContent.includes('text ids')")
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    page.set_input_files("#file-image", tmp_path / "photo.png")
    page.wait_for_selector(".drop.full[data-kind=image]")
    shoot(page, "live_start")
    page.fill("#prompt", "a crimson circle")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stage[data-state=live]")
    assert not page.is_visible(".zones")
    page.wait_for_function("Number(document.querySelector('#stage').dataset.frames) >= 5", timeout=WAIT)
    assert page.inner_text("#create") == "Say" and page.input_value("#prompt") == ""
    page.keyboard.type("two azure stars")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(".said li:nth-child(2) button:not(:disabled)", timeout=WAIT)
    assert page.inner_text(".said [aria-current]").endswith("two azure stars")
    assert "does not know: azure; near it: blue" in page.inner_text("#stage .words")
    shoot(page, "live")
    page.focus(".said button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.said li').length === 1")
    assert "does not know: crimson" in page.inner_text("#stage .words")
    page.click("[data-do=pause]")
    page.wait_for_function("document.querySelector('#stage .status').textContent === 'Paused'")
    page.click("[data-do=pause]")
    page.wait_for_function("Number(document.querySelector('#stage').dataset.frames) >= 9", timeout=WAIT)
    page.click("[data-do=end]")
    assert page.inner_text("#create") == "Play" and not page.is_visible(".said")
    page.click("#start label:has-text('Text')")
    make(page, "two")
    done(page)


def test_a_live_session_that_is_lost_is_told(page: Any, server: Any) -> None:
    page.click("#start label:has-text('Live')")
    with page.expect_response("**/v1/sessions") as answer:
        make(page, "a red circle")
    page.wait_for_selector("#stage[data-state=live]")
    server.http.post(f"/v1/sessions/{answer.value.json()['id']}/end")
    page.wait_for_function("document.querySelector('#stage .problem').textContent.includes('ended')")
    assert page.inner_text("#create") == "Play"


def test_prompts_are_text_whatever_they_look_like(page: Any) -> None:
    make(page, "<img src=x onerror=alert(1)> a <b>red</b> circle")
    page.wait_for_function(
        "document.querySelector('#stage[data-state=done]') || document.querySelector('#problem').textContent", timeout=WAIT
    )
    assert page.locator("#stage .words b, #gallery b").count() == 0


def test_a_phone_in_the_dark_and_the_keyboard(browser: Any, server: Any, shoot: Any, tmp_path: Path) -> None:
    for page in opened(browser, server, color_scheme="dark", **PHONE):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        Image.linear_gradient("L").resize((64, 40)).save(tmp_path / "photo.png")
        page.tap("#start label:has-text('Picture')")
        for kind in ("image", "last"):
            with page.expect_file_chooser() as chooser:
                page.tap(f"label[for=file-{kind}]")
            chooser.value.set_files(tmp_path / "photo.png")
            page.wait_for_selector(f".drop.full[data-kind={kind}]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shoot(page, "phone_pictures")
        page.focus("#prompt")
        page.keyboard.type("a red circle")
        page.keyboard.press("Enter")
        done(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        small = page.evaluate(
            "[...document.querySelectorAll('#stage .actions > :not([hidden])')].filter(e => e.offsetHeight < 40).length"
        )
        assert small == 0
        shoot(page, "phone_dark")


def sign_in(page: Any, url: str) -> None:
    page.goto(url)
    page.fill("#key", "not the right key")
    page.press("#key", "Enter")
    page.wait_for_selector("text=That is not the key of this server.")
    page.fill("#key", KEY)
    page.click("text=Sign in")
    page.wait_for_selector("body[data-ready]")


def test_whoever_has_the_key_gets_in_and_out(browser: Any, other_server: Any, shoot: Any) -> None:
    server = other_server(api_key=KEY)
    page = browser.new_context().new_page()
    page.goto(server.url + "/v1/videos")
    assert "needs its API key" in page.inner_text("body")
    page.goto(server.url + "/login")
    shoot(page, "login")
    sign_in(page, server.url)
    make(page, "a red circle")
    done(page)  # events, pictures and the video itself came with the cookie
    with page.expect_download() as saved:
        page.click("[data-do=mp4]")
    assert saved.value.path().read_bytes()[4:8] == b"ftyp"
    page.click("text=Sign out")
    page.wait_for_selector("#key")
    page.goto(server.url)
    assert page.url.endswith("/login")
    page.context.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[int, str], None]]:
    """nginx as in examples/serve: proxy(port, url of the server)."""
    running: list[list[str]] = []

    def start(port: int, url: str) -> None:
        words = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=video.example.org -keyout key.pem -out cert.pem"
        subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
        block = (Path(__file__).parents[2] / "examples" / "serve" / "nginx.conf").read_text()
        for ours, here in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/video.example.org.pem", f"{tmp_path}/cert.pem"),
            ("/etc/ssl/video.example.org.key", f"{tmp_path}/key.pem"),
            ("http://127.0.0.1:7860", url),
        ):
            assert ours in block
            block = block.replace(ours, here)
        places = "".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        file = tmp_path / "nginx.conf"
        file.write_text(f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {places} {block} }}")
        command = ["nginx", "-c", str(file), "-e", str(tmp_path / "log")]
        subprocess.run(command, check=True)  # a daemon: this ends once it listens
        running.append(command)

    yield start
    for command in running:
        subprocess.run([*command, "-s", "stop"], check=True)


@pytest.mark.skipif(not shutil.which("nginx") or not shutil.which("openssl"), reason="needs nginx: apt-get install nginx-light")
def test_the_page_behind_the_proxy_of_the_examples(browser: Any, other_server: Any, proxy: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"https://video.example.org:{port}"
    server = other_server(api_key=KEY, public_url=url)
    proxy(port, server.url)
    page = browser.new_context(ignore_https_errors=True).new_page()
    sign_in(page, url)
    make(page, "a red circle")
    done(page)
    page.context.close()


def test_a_page_that_waits_leaves_the_cores_to_the_model(page: Any, server: Any) -> None:
    other = page.context.new_page()
    other.add_init_script(
        "const raw = requestAnimationFrame; window.repaints = 0;"
        "window.requestAnimationFrame = (draw) => { repaints++; return raw(draw); }"
    )
    other.goto(server.url)
    other.wait_for_selector("body[data-ready]")
    quiet = "window.before === window.repaints || ((window.before = window.repaints), false)"
    other.wait_for_function(quiet, polling=300, timeout=WAIT)


def fair(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python").Axe()
    found = axe.run(page).response
    assert found["violations"] == [] and len(found["passes"]) > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_in_any_state(browser: Any, server: Any, scheme: str) -> None:
    for page in opened(browser, server, bypass_csp=True, color_scheme=scheme):
        page.click("#more summary")
        page.click("#create")
        page.click("#start label:has-text('Picture')")
        fair(page)
        page.click("#start label:has-text('Text')")
        make(page, "a red circle")
        done(page)
        fair(page)
        assert page.get_attribute("#stage .status", "aria-live") == "polite"
        page.click("#start label:has-text('Live')")
        make(page, "a red circle")
        page.wait_for_selector(".said button")
        make(page, "two blue stars")
        page.wait_for_selector(".said li:nth-child(2) button")
        fair(page)

"""The page: Gradio draws it with the parts of page.html, page.js speaks to the same HTTP API as every other
client, page.css makes it ours.

No function of this page runs on the server and no file goes through Gradio, so that rules, limits and errors exist once (api.py).
Fonts and scripts come from this machine; nothing is counted or reported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.base import RequestResponseEndpoint

from lumos.serving.config import ServeConfig
from lumos.serving.engine import Engine
from lumos.serving.guard import App

HERE = Path(__file__).parent
# the parts of page.html, by the comment before each
PARTS = dict(zip(*[iter(re.split(r"<!-- (\w+) -->", (HERE / "page.html").read_text("utf-8"))[1:])] * 2, strict=True))
EXAMPLES = (
    "a red circle moves to the right",
    "two green triangles bounce",
    "a large blue star spins",
    "a yellow heart moves in a circle",
    "a purple ring grows on a dark background",
)


def create_page(config: ServeConfig, engine: Engine) -> App:
    """The application that serves the page's files. It is served behind a Guard only, which lets nothing else of it through."""
    gradio = load_library()
    script = (HERE / "page.js").read_text("utf-8")
    facts = {
        "fps": engine.about["fps"],
        "frames": engine.about["frames"],
        "bytes": config.upload_bytes,
    }
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # not the library's own `head`, which comes after its scripts have begun: page.js has to be there before them
    _put_first(outer, f"<script>const LUMOS = {json.dumps(facts)};\n{script}</script>")
    page: App = gradio.mount_gradio_app(
        outer,
        _blocks(gradio, config, engine.about),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        theme=_theme(gradio),
        css=(HERE / "page.css").read_text("utf-8"),
    )
    return page


def _put_first(app: FastAPI, html: str) -> None:
    """Put `html` before everything else in the head of the page that `app` serves."""

    @app.middleware("http")
    async def first(request: Request, go_on: RequestResponseEndpoint) -> Response:
        answer = await go_on(request)
        if request.url.path != "/" or answer.status_code != 200:
            return answer
        parts = [part async for part in answer.body_iterator]  # type: ignore[attr-defined]
        return HTMLResponse(b"".join(parts).replace(b"<head>", b"<head>" + html.encode(), 1))


def load_library() -> Any:
    """Import Gradio, which takes seconds, with everything switched off that asks other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gradio

    return gradio


def _blocks(gradio: Any, config: ServeConfig, about: dict[str, Any]) -> Any:
    with gradio.Blocks(title="Lumos", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML(PARTS["header"], padding=False)
        with gradio.Row(elem_classes="lumos-main"):
            with gradio.Column(scale=5, min_width=320, elem_classes="lumos-card"):
                _starts(gradio, config)
                prompt = gradio.Textbox(
                    label="What should be seen?",
                    placeholder=EXAMPLES[0],
                    lines=2,
                    max_lines=5,
                    elem_id="lumos-prompt",
                    autofocus=True,
                )
                with gradio.Row(elem_classes="lumos-examples"):
                    for example in EXAMPLES:
                        chip = gradio.Button(example, size="sm", min_width=0, elem_classes="lumos-chip")
                        chip.click(None, None, prompt, js=f"() => {json.dumps(example)}")
                length = gradio.Radio(_lengths(about, config), value=about["frames"], label="Length", elem_id="lumos-length")
                options = _options(gradio, config, about)
                create = gradio.Button("Create", variant="primary", size="lg", elem_id="lumos-create")
            with gradio.Column(scale=6, min_width=320, elem_classes="lumos-card lumos-stage-card"):
                gradio.HTML(PARTS["stage"], padding=False)
        gradio.HTML(PARTS["gallery"], padding=False)
        create.click(None, [prompt, length, *options], None, js="(...asked) => { lumos.create(...asked); }")
        # page.js presses it to fill in what a finished video was made with
        fill = gradio.Button("fill in", elem_id="lumos-fill", visible="hidden")
        fill.click(None, None, [prompt, *options], js="() => lumos.filling")
    return page


def _starts(gradio: Any, config: ServeConfig) -> None:
    limit = f"up to {config.upload_bytes // 2**20} MB"
    with gradio.Tabs(elem_id="lumos-tabs"):
        with gradio.Tab("Text", id="text", elem_id="lumos-text") as tab:
            pass
        tab.select(None, js="() => { lumos.mode = 'text'; }")
        with gradio.Tab("Picture", id="image") as tab:
            accept, small = "image/*", f"PNG, JPEG, WebP, GIF, BMP or TIFF, {limit}"
            words = PARTS["drop"].format(kind="image", accept=accept, title="Drop a picture, or choose one", small=small)
            gradio.HTML(words, padding=False)
        tab.select(None, js="() => { lumos.mode = 'image'; }")
        with gradio.Tab("Continue", id="video") as tab:
            accept, small = "video/*,image/gif", f"MP4, WebM, GIF ..., {limit}. Or press Continue on one of yours"
            words = PARTS["drop"].format(kind="video", accept=accept, title="Drop a video, or choose one", small=small)
            gradio.HTML(words, padding=False)
        tab.select(None, js="() => { lumos.mode = 'video'; }")


def _options(gradio: Any, config: ServeConfig, about: dict[str, Any]) -> Sequence[Any]:
    most = min(config.max_steps, (about["height"] // 8) * (about["width"] // 8))
    with gradio.Accordion("More options", open=False, elem_id="lumos-more"):
        with gradio.Row():
            vary = gradio.Checkbox(True, label="New seed every time", info="Untick it to make the same video again")
            seed = gradio.Number(0, label="Seed", info="Where chance begins", precision=0, minimum=0, maximum=2**32 - 1)
        steps = gradio.Slider(
            1, most, about["steps"], step=1, label="Steps", info="Passes over every 4 frames; more is slower and often finer"
        )
        guidance = gradio.Slider(
            0, 10, about["guidance"], step=0.1, label="Guidance", info="How strongly to follow your words; 1 is twice as fast"
        )
        temperature = gradio.Slider(
            0.1, 2, about["temperature"], step=0.05, label="Temperature", info="How daring: low is safe and plain"
        )
    return vary, seed, steps, guidance, temperature


def _lengths(about: dict[str, Any], config: ServeConfig) -> list[tuple[str, int]]:
    """A still picture, and the trained length halved, as it is, doubled and so on."""
    trained, fps = about["frames"], about["fps"]
    lengths = {1 + 4 * max(1, round((trained - 1) * factor / 4)) for factor in (0.5, 1, 2, 4)} | {trained}
    return [("Still", 1)] + [(f"{n / fps:.{int(n < fps)}f} s", n) for n in sorted(lengths) if 1 < n <= config.max_frames]


def _theme(gradio: Any) -> Any:
    from gradio.themes.utils.fonts import Font, LocalFont

    theme = gradio.themes.Base(
        primary_hue=gradio.themes.colors.violet,
        neutral_hue=gradio.themes.colors.slate,
        radius_size=gradio.themes.sizes.radius_lg,
        text_size=gradio.themes.sizes.text_md,
        font=[LocalFont("IBM Plex Sans", weights=(400, 700)), Font("sans-serif")],
        font_mono=[Font("monospace")],
    )
    return theme.set(
        body_background_fill="#f6f4fb",
        body_background_fill_dark="#0c0b12",
        background_fill_primary_dark="#16141f",
        background_fill_secondary_dark="#12101a",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color="#1d1a29",
        block_title_text_color_dark="#efedf7",
        checkbox_label_background_fill="#f1eef9",
        checkbox_label_background_fill_dark="#0f0e16",
        checkbox_label_background_fill_hover="#e8e3f6",
        checkbox_label_background_fill_hover_dark="#1c1a28",
        checkbox_label_background_fill_selected="#e5defb",
        checkbox_label_background_fill_selected_dark="#2c2550",
        checkbox_background_color_dark="#343047",
        slider_color="#5b46e8",
        slider_color_dark="#8f7dff",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1c1a28",
        input_border_color="#dcd7ea",
        input_border_color_dark="#343047",
        border_color_primary_dark="#2b283a",
        button_primary_background_fill="linear-gradient(100deg, #5b46e8, #c2378f)",
        button_primary_background_fill_hover="linear-gradient(100deg, #6a56f5, #d1449d)",
        button_primary_background_fill_dark="linear-gradient(100deg, #5b46e8, #c2378f)",
        button_primary_background_fill_hover_dark="linear-gradient(100deg, #6a56f5, #d1449d)",
        button_primary_text_color="#ffffff",
    )

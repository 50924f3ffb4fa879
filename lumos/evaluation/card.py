"""A model card beside the weights: what the model is, what it was trained on, what it scores and what it cannot do."""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumos.evaluation.scores import in_percent
from lumos.files import write_text
from lumos.generate import Generator

CARD = "MODEL_CARD.md"
WEAK = 0.75  # classes below this are told as limits
UNTOLD = "Not told by the weights: say here what they were trained on. It is kept when the card is written again."
MARK = "\n<!-- written by lumos evaluate: "  # and a digest of all but the data, by which changes are seen


def write_card(folder: Path, out: Path, generator: Generator, scores: dict[str, Any]) -> Path:
    """Write the card into a weights folder from the report of the whole benchmark; returns its path.

    What stands under Data in a card that is there already is kept: only people know what a model was trained on. A card
    that a person wrote, or changed elsewhere, is left alone: the new one goes to `out`.
    """
    path = folder / CARD
    old = path.read_text("utf-8") if path.exists() else ""
    body, _, mark = old.rpartition(MARK)
    if old and mark.strip() != f"{_digest_without_data(body)} -->":
        print(f"{path} was written or changed by hand and is kept; the new card is {out / CARD}", file=sys.stderr, flush=True)
        path = out / CARD
    text = _card_text(generator, scores, _data_in(old) or UNTOLD)
    write_text(path, f"{text}{MARK}{_digest_without_data(text)} -->\n")
    return path


def _digest_without_data(text: str) -> str:
    return hashlib.sha256(text.replace(_data_in(text), "").encode()).hexdigest()[:16]


def _data_in(text: str) -> str:
    """What stands under "## Data"; empty when there is none."""
    return text.partition("\n## Data\n")[2].partition("\n## ")[0].strip()


def _card_text(generator: Generator, scores: dict[str, Any], data: str) -> str:
    config, settings = generator.config, scores["settings"]
    sizes = [sum(part.numel() for part in module.parameters()) / 1e6 for module in (generator.model, generator.tokenizer)]
    video, shape = config.video, config.model
    weak = [name for name, entry in scores["classes"].items() if entry["score"] < WEAK]
    rows = {"**overall**": {**scores["overall"], **scores["splits"]}, **scores["classes"]}
    return f"""# Model card

Written by `lumos evaluate shapes`; scores are of exactly these weights.

## The model

{sizes[0]:.1f} M parameters ({shape.layers} layers of width {shape.width}, {shape.rope}), and a visual tokenizer of \
{sizes[1]:.1f} M with {config.vocabulary.codes} codes. Videos of {video.frames} frames at {video.fps} per second, \
{video.width}x{video.height} pixels; prompts of at most {video.slots - 2} ids, of {config.vocabulary.text_size} that there are.
Sampling settings that come with it: {_listed(asdict(config.sampler))}. Weights {settings["weights"]} (a fingerprint).

## Data

{data}

## Scores

Shapes benchmark version {settings["benchmark"]}, {settings["count"]} prompts, seed {settings["seed"]}, on \
{settings["device"]}, sampled with {_listed(settings["sampler"])}. A judge reads the pixels and compares with what the prompt \
promises; what is unclear is not right. Intervals are Wilson's 95 %.

| class | right | 95 % | seen pairs | held-out pairs | unclear |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(_score_row(name, entry) for name, entry in rows.items())}

## Limits

It knows what it was trained on and nothing else; words that no caption had mean nothing to it.
Below {100 * WEAK:.0f} %: {", ".join(weak) if weak else "no class"}.
"""


def _listed(sampler: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sampler.items())


def _score_row(name: str, entry: dict[str, Any]) -> str:
    splits = [in_percent(entry[split])[0] if split in entry else "" for split in ("seen", "held-out")]
    return f"| {' | '.join([name, *in_percent(entry), *splits, str(entry['unclear'])])} |"

"""A model card, to be put beside the weights: what the model is, what it was trained on, what it scores and what it cannot do."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumos.evaluation.scores import in_percent
from lumos.files import write_text
from lumos.generate import Generator

CARD = "MODEL_CARD.md"
WEAK = 0.75  # classes below this are told as limits


def write_card(out: Path, generator: Generator, scores: dict[str, Any]) -> Path:
    """Write the card from the report of the whole benchmark, unless there is one; returns its path."""
    path = out / CARD
    if not path.exists():
        write_text(path, _card_text(generator, scores))
    return path


def _card_text(generator: Generator, scores: dict[str, Any]) -> str:
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

Not told by the weights: say here what they were trained on.

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

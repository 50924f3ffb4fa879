"""A model card beside the weights: what the model is, what it was trained on, what it scores and what it cannot do."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumos.diffusion.sampler import SamplerConfig
from lumos.files import write_text
from lumos.generate import Generator

CARD = "MODEL_CARD.md"
WEAK = 0.75  # classes below this are told as limits
UNTOLD = "Not told by the weights: say here what they were trained on. It is kept when the card is written again."


def write_card(folder: Path, generator: Generator, scores: dict[str, Any]) -> Path:
    """Write the card into a weights folder from the report of the whole benchmark; returns its path.

    What stands under Data in a card that is there already is kept: only people know what a model was trained on.
    """
    config, settings = generator.config, scores["settings"]
    parameters = sum(parameter.numel() for parameter in generator.model.parameters())
    tokenizer = sum(parameter.numel() for parameter in generator.tokenizer.parameters())
    video, shape = config.video, config.model
    weak = [name for name, entry in scores["classes"].items() if entry["score"] < WEAK]
    lines = [
        "# Model card",
        "",
        "Written by `lumos evaluate shapes`; scores are of exactly these weights.",
        "",
        "## The model",
        "",
        f"{parameters / 1e6:.1f} M parameters ({shape.layers} layers of width {shape.width}, {shape.rope}), and a visual "
        f"tokenizer of {tokenizer / 1e6:.1f} M with {config.vocabulary.codes} codes. Videos of {video.frames} frames at "
        f"{video.fps} a second, {video.width}x{video.height} pixels; prompts of at most {video.slots - 2} ids, of "
        f"{config.vocabulary.text_size} that there are.",
        f"Sampling settings that come with it: {_said(asdict(config.sampler))}. Weights {settings['weights']} (a fingerprint).",
        "",
        "## Data",
        "",
        _data_in(folder / CARD) or UNTOLD,
        "",
        "## Scores",
        "",
        f"Shapes benchmark version {settings['benchmark']}, {settings['count']} prompts, seed {settings['seed']}, on "
        f"{settings['device']}, sampled with {_said(settings['sampler'])}. "
        "A judge reads the pixels and compares with what the prompt promises; what is unclear is not right. Intervals are "
        "Wilson's 95 %.",
        "",
        "| class | right, % | 95 % | seen pairs | held-out pairs | unclear | aim (held out) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(name, entry) for name, entry in {"**overall**": _overall(scores), **scores["classes"]}.items()]
    lines += [
        "",
        "## Limits",
        "",
        "It knows what it was trained on and nothing else; words that no caption had mean nothing to it.",
        f"Below {100 * WEAK:.0f} %: {', '.join(weak) if weak else 'no class'}.",
        "",
    ]
    path = folder / CARD
    write_text(path, "\n".join(lines))
    return path


def _data_in(card: Path) -> str:
    """The text under "## Data" of a card; empty when there is none."""
    text = card.read_text("utf-8") if card.exists() else ""
    return text.partition("\n## Data\n")[2].partition("\n## ")[0].strip()


def _said(sampler: dict[str, Any]) -> str:
    """Settings in words; of groups of them what is unusual."""
    usual, words = asdict(SamplerConfig()), []
    for name, value in sampler.items():
        if isinstance(value, dict):
            words += [f"{inner} {setting}" for inner, setting in value.items() if setting != usual[name].get(inner)]
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def _overall(scores: dict[str, Any]) -> dict[str, Any]:
    return {**scores["overall"], **scores["splits"]}


def _row(name: str, entry: dict[str, Any]) -> str:
    splits = [f"{100 * entry[split]['score']:.1f}" if split in entry else "" for split in ("seen", "held-out")]
    aim = f"{100 * entry['target']:.0f}" if "target" in entry else ""
    interval = f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"
    return f"| {name} | {100 * entry['score']:.1f} | {interval} | {splits[0]} | {splits[1]} | {entry['unclear']} | {aim} |"

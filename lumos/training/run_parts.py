"""What a training run is put together from: tokenizers, vocabulary, perhaps weights to start from, and its source of batches.

All that can be wrong with it is found here, before anything is written: foreign shards, weights of another shape, words that do
not fit, too few clips, too little memory.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lumos.data.batch import Schedule, Stream
from lumos.data.loader import ShardStream, captions_by_clip, fits_as_prompt
from lumos.data.shards import TOKENS, ShardIndex, check_tokenizer, open_shards
from lumos.data.worlds import Chunks, World, WorldsStream, open_worlds, own_captions, sample_captions
from lumos.diffusion.cost import free_memory
from lumos.diffusion.sampler import codes_left
from lumos.model_folder import TEXT_FILE, FolderConfig, load_model, prompt_reader
from lumos.ranks import Ranks
from lumos.sequence.prompt_template import check_text
from lumos.sequence.text import TextTokenizer, train_text_tokenizer, words_in
from lumos.sequence.vocabulary import LUMOS, Vocabulary, small_vocabulary
from lumos.tokenizer.cosmos import CosmosConfig
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.training import step_cost
from lumos.training.config import Sources, TrainModelConfig
from lumos.weights import fingerprint

SAMPLE_PROMPTS = ("a red circle moves to the right", "a blue star moving up", "three green hearts", "a small pink ring grows")


class RunParts(NamedTuple):
    """The same on every rank, but for the stream's share of the data."""

    config: TrainModelConfig  # with the vocabulary's size in it
    text: TextTokenizer
    vocabulary: Vocabulary
    tokenizer: VideoTokenizer
    initial: dict[str, Tensor] | None  # weights to start from
    schedule: Schedule
    worlds: dict[str, World]
    shards: ShardStream | None

    @property
    def folder(self) -> FolderConfig:
        """What the run's weights folder says of itself."""
        return FolderConfig(self.config.model, self.vocabulary, self.config.video, self.config.sampler)

    def record(self) -> dict[str, Any]:
        """What a resumed run must share with its beginning: settings, tokenizer, shards."""
        data = "" if self.shards is None else self.shards.index.digest
        return {**asdict(self.config), "tokenizer": fingerprint(self.tokenizer), "data": data}

    def about_run(self, parameters: int, device: torch.device) -> str:
        """One line on what is going to happen."""
        config, video = self.config, self.config.video
        data = "shards" if self.shards is not None else " and ".join(self.worlds) + " drawn meanwhile"
        step = f"{config.videos} videos of {video.width}x{video.height}, {video.frames} frames, or {config.images} images"
        limits = [f"{limit:g} {unit}" for limit, unit in ((config.max_steps, "steps"), (config.max_seconds, "s")) if limit]
        until = f"at most {' or '.join(limits)}" if limits else "until Ctrl-C"
        return f"{parameters / 1e6:.1f} M parameters on {device}; {data}; {step} a step; {until}"

    def sample_prompts(self) -> tuple[str, ...]:
        """What the sample sheets show: shapes, and captions of the other worlds and of the shards."""
        if self.shards is None or self.shards.index.form == TOKENS:
            others = [world for name, world in self.worlds.items() if name != "shapes"]
            return (*SAMPLE_PROMPTS, *(sample_captions(others, 4, self.config.seed) if others else ()))
        clips, size = captions_by_clip(self.shards.index, 6), (self.config.video.height, self.config.video.width)
        fitting = ([caption for caption in clip if fits_as_prompt(self.shards.prompts, caption, *size)] for clip in clips)
        own = SAMPLE_PROMPTS[:3] if self.config.worlds is not None and self.config.data_share < 1 else ()
        return (*own, *(captions[0] for captions in fitting if captions)) or SAMPLE_PROMPTS

    def open_stream(self, step: int, device: torch.device) -> Stream:
        """Batches from `step` on: of the worlds, shards or both."""
        config = self.config
        if self.shards is not None and (config.worlds is None or config.data_share == 1):
            return self.shards
        assert config.worlds is not None
        chunks = Chunks(config.worlds, self.worlds, self.text, self.vocabulary, config.video.slots, self.schedule)
        stream = WorldsStream(chunks, self.tokenizer, step, device)
        if self.shards is None:
            return stream
        self.shards.other = stream
        return self.shards


def gather_parts(
    config: TrainModelConfig, tokenizer_folder: Path, sources: Sources, ranks: Ranks, saved: Path | None = None
) -> RunParts:
    """The parts of a run, checked against each other. ValueError or OSError for those that do not fit.

    saved: the weights folder of a run that goes on, whose vocabulary is taken as it is.
    """
    data, init = sources.data, sources.init
    if config.worlds is None and data is None:
        raise ValueError("this preset trains on shards, got none; give --data FOLDER (lumos prepare makes one)")
    if config.lora.rank and init is None:
        raise ValueError("lora.rank must be 0 without weights to start from, got none; give --init NAME or FOLDER")
    tokenizer, index = load_tokenizer(tokenizer_folder), None if data is None else open_shards(data)
    drawn = config.worlds is not None and (data is None or config.data_share < 1)
    if drawn and isinstance(tokenizer.config, CosmosConfig):
        raise ValueError("the built-in worlds need a tokenizer trained on them, got a Cosmos one; give --tokenizer")
    worlds = open_worlds(config.worlds, sources.stickers, sources.creatures) if config.worlds is not None and drawn else {}
    unused = [name for name in ("stickers", "creatures") if getattr(sources, name) is not None and name not in worlds]
    if unused or (sources.text is not None and (init is not None or config.model.vocabulary != LUMOS.size)):
        raise ValueError(f"this run makes no use of --{(unused or ['text'])[0]}; leave it out, or see the preset's --help")
    if index is not None:
        check_tokenizer(index, tokenizer)
        if index.form != TOKENS and index.fps != config.video.fps:
            raise ValueError(f"video.fps must be {index.fps:g}, as in {data}, got {config.video.fps}; change it by --set")
    if init is None and saved is not None and (saved / TEXT_FILE).is_file():
        # another look at 20,000 captions would take as long as 100 steps
        text, initial = TextTokenizer.from_file(saved / TEXT_FILE), None
        is_published = config.model.vocabulary == LUMOS.size
        vocabulary = LUMOS if is_published else small_vocabulary(text.size, tokenizer.codebook_size)
    else:
        text, vocabulary, initial = _words(config, list(worlds.values()), tokenizer.codebook_size, index, sources)
        some = sample_captions(list(worlds.values()), 200, config.seed) if worlds else ()
        if (needed := 2 + max((len(text.encode(words)) for words in some), default=0)) > config.video.slots:
            raise ValueError(f"video.slots must be at least {needed} for captions of the worlds, got {config.video.slots}")
    model = replace(config.model, vocabulary=vocabulary.size, sub_codes=vocabulary.sub_codes)
    config = replace(config, model=model, video=replace(config.video, temporal=tokenizer.temporal, spatial=tokenizer.spatial))
    if config.lora.rank and config.parallel.recompute != "off":  # compiled, adapters are not computed again as they were
        config = replace(config, parallel=replace(config.parallel, compile="off"))
    codes_left((config.video.height // tokenizer.spatial) * (config.video.width // tokenizer.spatial), config.sampler.steps)
    config.parallel.check(ranks.world)
    _check_memory(config, vocabulary, ranks)
    schedule = Schedule(config.videos, config.images, config.image_every, config.seed, ranks.rank, ranks.world)
    share, shards = config.data_share if config.worlds is not None else 1.0, None
    if index is not None:
        prompts, spatial = prompt_reader(text, config.video), config.video.spatial
        shards = ShardStream(index, prompts, spatial, vocabulary, schedule, config.loader, ranks.device, share)
    return RunParts(config, text, vocabulary, tokenizer, initial, schedule, worlds, shards)


def _words(
    config: TrainModelConfig, worlds: Sequence[World], codes: int, index: ShardIndex | None, sources: Sources
) -> tuple[TextTokenizer, Vocabulary, dict[str, Tensor] | None]:
    """The vocabulary: that of the weights to start from, the published one, or a new one; and those weights."""
    drawn = sample_captions(worlds, 20_000, config.seed) if worlds else []
    captions = [] if index is None or index.form == TOKENS else chain.from_iterable(captions_by_clip(index))
    init = sources.init
    if init is not None:
        folder, model, text, _ = load_model(init)
        expected = replace(config.model, vocabulary=folder.vocabulary.size, sub_codes=folder.vocabulary.sub_codes)
        if folder.model != expected:
            other = [f"{name}={value}" for name, value in asdict(folder.model).items() if value != getattr(expected, name)]
            raise ValueError(f"{init} must hold a model of this preset's shape, got {', '.join(other)}; use its own preset")
        if folder.vocabulary.codes != codes:
            raise ValueError(f"the tokenizer must have the {folder.vocabulary.codes} codes of {init}, got {codes}")
        if not config.new_words:
            text.words |= {word for caption in chain(drawn, captions) for word in words_in(caption)} if text.words else set()
            return text, folder.vocabulary, model.state_dict()
        if folder.vocabulary == LUMOS:
            raise ValueError("new_words must be false for the published vocabulary, got true; its words are fixed")
    elif config.model.vocabulary == LUMOS.size:
        if sources.text is None:
            rule = "the published vocabulary needs its text tokenizer, got none"
            raise ValueError(f"{rule}; give --text text_tokenizer.json, or --init")
        if codes != LUMOS.codes:
            rule = f"the published vocabulary has {LUMOS.codes} codes, got a tokenizer of {codes}"
            raise ValueError(f"{rule}; give the Cosmos tokenizer (--tokenizer FOLDER), or --set model.vocabulary=0")
        text = TextTokenizer.from_file(sources.text)
        check_text(text)
        return text, LUMOS, None
    new_text = train_text_tokenizer(chain(drawn, captions), config.text_vocabulary)
    new_text.words |= {word for caption in own_captions(worlds) for word in words_in(caption)}
    vocabulary = small_vocabulary(new_text.size, codes)
    if init is None:
        return new_text, vocabulary, None
    return new_text, vocabulary, carried_over(model.state_dict(), text, folder.vocabulary, new_text, vocabulary)


def carried_over(
    weights: dict[str, Tensor], old_text: TextTokenizer, old: Vocabulary, new_text: TextTokenizer, new: Vocabulary
) -> dict[str, Tensor]:
    """`weights` of a model with `old` ids as those of one with `new` ids, which differ in their text alone.

    A new word starts as the mean of the pieces that the old vocabulary spells it with, so what the model knew of it is kept.
    """
    share_NO = torch.zeros(new.text_size, old.text_size)
    for word, row in new_text.tokenizer.get_vocab(with_added_tokens=True).items():
        known = old_text.tokenizer.token_to_id(word)
        pieces = [known] if known is not None else [piece.id for piece in old_text.tokenizer.model.tokenize(word)]
        for piece in pieces:
            share_NO[row, piece] += 1 / len(pieces)
    found = dict(weights)
    for name in ("embedding", "head"):
        text_OD, rest_RD = weights[name].split([old.text_size, old.size - old.text_size])
        found[name] = torch.cat([(share_NO @ text_OD.float()).to(text_OD.dtype), rest_RD])
    return found


def _check_memory(config: TrainModelConfig, vocabulary: Vocabulary, ranks: Ranks) -> None:
    """ValueError, with what would fit, for a run that this card, or this machine's memory, has no room for."""
    on_card, plan = ranks.device.type == "cuda", config.parallel
    most = torch.cuda.get_device_properties(ranks.device).total_memory if on_card else free_memory(ranks.device)
    plan = plan if on_card else replace(plan, compile="off")
    for work in step_cost.works_of(config, vocabulary.code_rows).values():
        need = step_cost.step_memory(config.model, work, plan, ranks.world, config.moments)
        if not on_card:  # in float32
            need = replace(need, activations=2 * need.activations, logits=2 * need.logits)
        if most is not None and not step_cost.fits(need, most / 2**30):
            rule = f"a step must fit into the {most / 2**30:.0f} GiB here, got about {need.total / 2**30:.0f} GiB by estimate"
            words = step_cost.advice(config.model, work, plan, ranks.world, config.moments, most / 2**30)
            raise ValueError(f"{rule}; {words if on_card else 'use fewer --set videos= and images=, or more accumulate='}")

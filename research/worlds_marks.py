"""Marks for a model of the three worlds: is each subject the one that was named, does it stay itself, does it move as told?

    python -m research.worlds_marks learn --stickers MANIFEST --creatures ZIP --tokenizer FOLDER --out runs/marks
    python -m research.worlds_marks mark --marks runs/marks --weights FOLDER --out runs/marked

`learn` trains two small networks on rendered clips that a tokenizer has encoded and decoded, and shows how well they read the
prompts' real clips, which they never met. `mark` makes the videos of worlds_prompts.jsonl and reads them. The networks are in
worlds_judge.py.
"""

import argparse
import json
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, grid_sample, interpolate, normalize
from torch.utils.data import DataLoader, Dataset

import lumos.worlds.creatures.render as creature_pictures
import lumos.worlds.stickers.render as sticker_pictures
import lumos.worlds.stickers.scene as sticker_scenes
from lumos.evaluation.report import wilson
from lumos.evaluation.run import usual_batch, usual_workers
from lumos.generate import Generator
from lumos.known_words import in_known_words
from lumos.media.pixels import to_bytes, to_float
from lumos.media.sheet import contact_sheet
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.worlds.creatures.captions import direction
from lumos.worlds.creatures.library import Library, load_library
from lumos.worlds.creatures.scene import Scene, sample_scene
from lumos.worlds.creatures.subjects import ACTIONS, SUBJECTS
from lumos.worlds.stickers.library import load_stickers
from research.worlds_judge import WAYS, Judge, cropped, looks, small, whole
from research.worlds_prompts import COUNTS, IN_OTHER_WORDS, Asked, read_prompts, scene_of

SIDE, FRAMES, FPS = 256, 25, 12
BATCH, PER_CLIP = 32, 3  # clips at a time, and frames of a creature's clip that names are learnt from
WORLDS = ("stickers", "creatures")
Clips = Iterable[tuple[list[Asked], Tensor]]  # prompts and their pixels_BCFHW


# ------------------------------------------------------------------ real clips
@dataclass(frozen=True)
class Material:
    """Both worlds' things and the tokenizer, on one device."""

    stickers: Sequence[sticker_scenes.Sticker]
    pictures: sticker_pictures.Pictures
    library: Library
    tokenizer: VideoTokenizer
    device: torch.device

    @torch.inference_mode()
    def as_decoded(self, pixels_BCFHW: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.tokenizer.decode(self.tokenizer.encode(pixels_BCFHW)).float().clamp(-1, 1)

    def of_stickers(self, scenes: Sequence[sticker_scenes.Scene], frames: int) -> Tensor:
        return sticker_pictures.render(sticker_pictures.pack(scenes).to(self.device), self.pictures, frames, SIDE, FPS)

    def of_creatures(self, packed: creature_pictures.PackedScenes) -> Tensor:
        return creature_pictures.render(packed, self.library, FRAMES, SIDE, FPS)


class CreatureScenes(Dataset[tuple[Any, list[Scene]]]):
    """Scenes of one creature, every creature as often, a batch at a time."""

    def __init__(self, library: Library, seed: int, batches: int) -> None:
        self.library, self.seed, self.batches = library, seed, batches
        self.plants = {file: body for file, body in library.bodies.items() if SUBJECTS[file].kind in ("plant", "cover")}
        self.files = [file for file in library.bodies if file not in self.plants]

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> tuple[Any, list[Scene]]:
        if batch >= self.batches:
            raise IndexError
        torch.set_num_threads(1)
        scenes = [self.one(BATCH * batch + n) for n in range(BATCH)]
        return creature_pictures.pack(scenes, self.library), scenes

    def one(self, number: int) -> Scene:
        file = self.files[number % len(self.files)]
        for attempt in range(1000):
            scene = sample_scene({**self.plants, file: self.library.bodies[file]}, self.seed, 1000 * number + attempt)
            if [item.file for item in scene.creatures] == [file]:
                return scene
        raise ValueError(f"{file} is never alone")


def sticker_scene(number: int, rng: random.Random, motion: str = "", mirror: bool = True) -> sticker_scenes.Scene:
    """One sticker: filling the frame, or placed; with a motion always placed."""
    thing = sticker_scenes.PlacedSticker(number, "full", start=rng.uniform(0, 3), mirrored=mirror and rng.random() < 0.3)
    if not motion and rng.random() < 0.4:
        white = sticker_scenes.Background(sticker_scenes.WHITE)
        return sticker_scenes.Scene(white if rng.random() < 0.7 else sticker_scenes._ground(rng), (thing,))
    sizes = tuple(sticker_scenes.RADII)
    thing = replace(thing, size=rng.choice(sizes[1:] if motion in ("growing", "shrinking") else sizes), motion=motion or "still")
    return sticker_scenes.Scene(sticker_scenes._ground(rng), (sticker_scenes._place(rng, sticker_scenes.WHOLE, thing),))


def real_clips(prompts: Sequence[Asked], material: Material, seed: int) -> Iterator[tuple[list[Asked], Tensor]]:
    """A clip that is true of each prompt, encoded and decoded."""
    of: dict[str, list[int]] = {}
    for number, sticker in enumerate(material.stickers):
        of.setdefault(subject_of(sticker), []).append(number)
    for part in _parts(prompts, BATCH):
        if part[0].world == "creatures":
            scenes = [scene_of(asked, material.library.bodies) for asked in part]
            pixels = material.of_creatures(creature_pictures.pack(scenes, material.library))
        else:
            rngs = [random.Random(f"{seed} {asked.text}") for asked in part]
            numbers = [rng.choice(of[asked.subject]) for asked, rng in zip(part, rngs, strict=True)]
            mirrors = [material.stickers[number].mirror for number in numbers]
            rows = zip(part, rngs, numbers, mirrors, strict=True)
            pixels = material.of_stickers([sticker_scene(n, rng, one.motion, mirror) for one, rng, n, mirror in rows], FRAMES)
        yield part, material.as_decoded(pixels)


def subject_of(sticker: sticker_scenes.Sticker) -> str:
    """The noun, or the name where only whole captions are true ("grapes")."""
    return sticker.noun or sticker.captions[0]


def _parts(prompts: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Prompts of one list, so many at a time."""
    for name in dict.fromkeys(asked.list for asked in prompts):
        same = [asked for asked in prompts if asked.list == name]
        yield from (same[first : first + size] for first in range(0, len(same), size))


# ------------------------------------------------------------------ learning
def learn(args: argparse.Namespace) -> None:
    began, device = time.monotonic(), torch.device(args.device)

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {words}", file=sys.stderr, flush=True)

    library = load_library(args.creatures)
    stickers, pictures = load_stickers(args.stickers, SIDE, FPS, args.workers)
    material = Material(
        stickers, pictures.to(device), library.to(device), load_tokenizer(args.tokenizer).to(device).eval(), device
    )
    say(f"{len(stickers)} stickers, {len(library.bodies)} bodies")
    known = [
        asked for asked in chosen(args.count) if asked.world == "creatures" or asked.subject in set(map(subject_of, stickers))
    ]
    wanted = {asked.subject for asked in known if asked.world == "stickers"}
    numbers = [n for n, sticker in enumerate(stickers) if sticker.noun or subject_of(sticker) in wanted]
    allowed: dict[str, list[str]] = {}
    for file, body in library.bodies.items():
        if SUBJECTS[file].kind not in ("plant", "cover"):
            allowed.setdefault(f"creatures/{SUBJECTS[file].name}", []).extend(body.gaits)
    subjects = list(dict.fromkeys([*(f"stickers/{subject_of(stickers[n])}" for n in numbers), *allowed]))
    judge = Judge({"subjects": subjects, "allowed": allowed, "real": {}}).to(device)
    pictures_N, name_N, smalls, labels = training_set(material, library, judge, numbers, args, say)
    learn_names(judge, pictures_N, name_N, args.steps, say)
    learn_moves(judge, smalls, labels, args.steps, say)
    judge.eval()
    found = marked(judge, real_clips(known, material, args.seed + 1), say)
    judge.about["real"] = {asked.text: mark["change"] for asked, mark in found}
    args.out.mkdir(parents=True, exist_ok=True)
    learnt = {name: value.half().contiguous() for name, value in judge.state_dict().items() if not name.startswith("plain.")}
    save_file(learnt, args.out / "marks.safetensors")
    (args.out / "marks.json").write_text(json.dumps(judge.about))
    tell(judge, found, args.out)
    say("real clips, encoded and decoded, as above: what the marks are worth")


def training_set(
    material: Material, library: Library, judge: Judge, numbers: list[int], args: argparse.Namespace, say: Callable[[str], None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures of subjects and their numbers; small clips of creatures and (subject, action, way). On the device, as bytes.

    library: on the CPU, for the processes that draw scenes.
    """
    pictures, names, smalls, labels = [], [], [], []
    rng = random.Random(args.seed)
    views = [number for number in numbers for _ in range(args.views)]
    for first in range(0, len(views), 2 * BATCH):
        part = views[first : first + 2 * BATCH]
        scenes = [sticker_scene(number, rng, mirror=material.stickers[number].mirror) for number in part]
        pixels = material.as_decoded(material.of_stickers(scenes, 1))
        pictures.append(to_bytes(cropped(pixels[:, :, 0])))
        names += [judge.number[f"stickers/{subject_of(material.stickers[number])}"] for number in part]
    say(f"{len(names)} pictures of stickers")
    scenes_of = CreatureScenes(library, args.seed, max(1, args.clips // BATCH))
    for packed, scenes in DataLoader(scenes_of, batch_size=None, num_workers=args.workers):
        pixels = material.as_decoded(material.of_creatures(packed))
        smalls.append(to_bytes(small(pixels)))
        pictures.append(to_bytes(looks(pixels[:, :, rng.sample(range(FRAMES), PER_CLIP)], "creatures").flatten(0, 1)))
        for scene in scenes:
            (item,) = scene.creatures
            subject = judge.number[f"creatures/{SUBJECTS[item.file].name}"]
            labels.append((subject, list(ACTIONS).index(item.action), WAYS.index(direction(scene, item))))
            names += [subject] * PER_CLIP
    say(f"{len(labels)} clips of creatures")
    device = material.device
    pictures_NCHW, smalls_BCFHW = (torch.cat(parts).to(device) for parts in (pictures, smalls))
    return pictures_NCHW, torch.tensor(names, device=device), smalls_BCFHW, torch.tensor(labels, device=device)


def learn_names(judge: Judge, pictures_NCHW: Tensor, name_N: Tensor, steps: int, say: Callable[[str], None]) -> None:
    """From the features as they come, a subject's direction being the mean of its pictures'; half of a batch are stickers."""
    network, device = judge.names, name_N.device
    network.eval()
    with torch.no_grad():
        features = torch.cat([normalize(network.features(to_float(part)), dim=1) for part in pictures_NCHW.split(128)])
        network.subjects_ND.index_add_(0, name_N, features)
    sticker = torch.tensor([name.startswith("stickers/") for name in judge.about["subjects"]], device=device)[name_N]
    halves = [rows for rows in (sticker.nonzero()[:, 0], (~sticker).nonzero()[:, 0]) if len(rows)]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(2, steps), pct_start=0.15)
    network.train()
    for step in range(steps):
        rows = torch.cat([half[torch.randint(len(half), (min(64, len(half)),), device=device)] for half in halves])
        pixels = _varied(to_float(pictures_NCHW[rows]))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = cross_entropy(20 * network(pixels), name_N[rows], label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            say(f"names, step {step + 1} of {steps}: loss {float(loss.detach()):.3f}")


def _varied(pixels_BCHW: Tensor) -> Tensor:
    """Moved and scaled a little, other light: what must not change a name."""
    B, device = len(pixels_BCHW), pixels_BCHW.device
    scale, shift = 1 + 0.12 * (torch.rand(B, 1, 1, device=device) - 0.5), 0.1 * (torch.rand(B, 2, 1, device=device) - 0.5)
    theta_B23 = torch.cat([scale * torch.eye(2, device=device), shift], dim=2)
    grid = nn.functional.affine_grid(theta_B23, list(pixels_BCHW.shape), align_corners=False)
    light = 1 + 0.2 * (torch.rand(B, 3, 1, 1, device=device) - 0.5)
    return grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False) * light


def learn_moves(judge: Judge, smalls_BCFHW: Tensor, labels_B3: Tensor, steps: int, say: Callable[[str], None]) -> None:
    network, device = judge.moves, labels_B3.device
    allowed = torch.zeros(len(judge.number), len(ACTIONS), device=device)
    for name, actions in judge.about["allowed"].items():
        allowed[judge.number[name], [list(ACTIONS).index(action) for action in actions]] = 1
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(2, steps), pct_start=0.1)
    network.train()
    for step in range(steps):
        rows = torch.randint(len(labels_B3), (min(128, len(labels_B3)),), device=device)
        subject, action, way = labels_B3[rows].unbind(1)
        clips = to_float(smalls_BCFHW[rows])
        clips = clips * (1 + 0.3 * (torch.rand(len(rows), 3, 1, 1, 1, device=device) - 0.5))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores, ways = network(clips, subject)
        scores = scores.float().masked_fill(allowed[subject] == 0, -30.0)
        loss = cross_entropy(scores, action) + cross_entropy(ways.float(), way)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            say(f"moves, step {step + 1} of {steps}: loss {float(loss.detach()):.3f}")


# ------------------------------------------------------------------ marking
def mark(args: argparse.Namespace) -> None:
    began = time.monotonic()
    judge = Judge(json.loads((args.marks / "marks.json").read_text()))
    learnt = {name: value.float() for name, value in load_file(args.marks / "marks.safetensors").items()}
    judge.load_state_dict(learnt, strict=False)  # without the features as they come
    generator = Generator.from_folder(args.weights, args.device)
    judge = judge.to(generator.device).eval()
    prompts = [asked for asked in chosen(args.count) if f"{asked.world}/{asked.subject}" in judge.number]

    def made() -> Iterator[tuple[list[Asked], Tensor]]:
        for part in _parts(prompts, usual_batch(generator.device)):
            seeds = [zlib.crc32(f"{args.seed} {asked.text}".encode()) for asked in part]
            yield part, generator([in_known_words(asked.text, generator.text.words).prompt for asked in part], seed=seeds)

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {words}", file=sys.stderr, flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    tell(judge, marked(judge, made(), say, args.out), args.out)


def chosen(count: int | None) -> list[Asked]:
    """All prompts, or the first so many of each list."""
    prompts = read_prompts()
    if count is None:
        return prompts
    lists = (*COUNTS, IN_OTHER_WORDS)
    return [asked for name in lists for asked in [one for one in prompts if one.list == name][:count]]


def marked(
    judge: Judge, clips: Clips, say: Callable[[str], None], sheets: Path | None = None
) -> list[tuple[Asked, dict[str, Any]]]:
    """Each prompt with its marks; with a folder, the first wrong clips of each list are drawn there."""
    found: list[tuple[Asked, dict[str, Any]]] = []
    wrong: dict[str, list[tuple[Tensor, str]]] = {}
    for asked, pixels_BCFHW in clips:
        marks = judge.marks(asked, pixels_BCFHW)
        found += zip(asked, marks, strict=True)
        for one, clip, one_mark in zip(asked, pixels_BCFHW, marks, strict=True):
            if not (one_mark["named"] and one_mark["action"] is not False and one_mark["way"] is not False):
                seen = f"{one.text} (saw {one_mark['subject'].partition('/')[2]}, {one_mark['did']})"
                wrong.setdefault(one.list, []).append((whole(clip.transpose(0, 1).float()).transpose(0, 1).cpu(), seen))
        say(f"{len(found)} clips")
    if sheets is None:
        return found
    for name, entries in wrong.items():
        pixels = torch.stack([interpolate(clip[:, ::6], (96, 96), mode="area") for clip, _ in entries[:24]])
        contact_sheet(pixels, [words for _, words in entries[:24]]).convert("RGB").save(sheets / f"wrong {name}.jpg", quality=85)
    return found


def tell(judge: Judge, found: list[tuple[Asked, dict[str, Any]]], out: Path) -> None:
    """The table, and every mark in marks.jsonl."""
    (out / "marks.jsonl").write_text(
        "".join(json.dumps({"text": one.text, "list": one.list, **each}) + "\n" for one, each in found)
    )
    print("| list | clips | named right, % | identity (1 = as real clips) | action right, % | moves the right way, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(one.list for one, _ in found):
        marks = [(one, each) for one, each in found if one.list == name]
        real = sum(judge.about["real"].get(one.text, 0.0) for one, _ in marks)
        identity = f"{sum(each['change'] for _, each in marks) / real:.2f}" if real else "-"
        shares = [_share([each[key] for _, each in marks if each[key] is not None]) for key in ("named", "action", "way")]
        print(f"| {name} | {len(marks)} | {shares[0]} | {identity} | {shares[1]} | {shares[2]} |")
    wrong = {
        world: [(one.subject, each["subject"]) for one, each in found if one.world == world and not each["named"]]
        for world in WORLDS
    }
    wrong["actions"] = [(one.action, each["did"]) for one, each in found if each["action"] is False]
    for what, pairs in wrong.items():
        worst = "; ".join(f"{asked} as {seen.partition('/')[2] or seen}" for (asked, seen), _ in Counter(pairs).most_common(20))
        print(f"{what} taken for another: {worst or 'none'}")


def _share(marks: list[bool]) -> str:
    if not marks:
        return "-"
    low, high = wilson(sum(marks), len(marks))
    return f"{100 * sum(marks) / len(marks):.1f} ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("learn", "mark"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the networks, or for marks and sheets")
    parser.add_argument("--stickers", type=Path, help="learn: manifest of the stickers")
    parser.add_argument("--creatures", type=Path, help="learn: folder or zip of GLB files")
    parser.add_argument("--tokenizer", type=Path, help="learn: folder of the tokenizer")
    parser.add_argument("--marks", type=Path, help="mark: what learn wrote")
    parser.add_argument("--weights", help="mark: the model")
    parser.add_argument("--count", type=int, help="prompts of each list (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=12288, help="learn: creature clips")
    parser.add_argument("--views", type=int, default=12, help="learn: pictures per sticker")
    parser.add_argument("--steps", type=int, default=1500, help="learn: of each network")
    parser.add_argument(
        "--workers", type=int, default=usual_workers(torch.device(device)), help="learn: processes beside this one"
    )
    parser.add_argument("--device", default=device)
    args = parser.parse_args()
    needed = {"learn": ("stickers", "creatures", "tokenizer"), "mark": ("marks", "weights")}[args.verb]
    if missing := [name for name in needed if getattr(args, name) is None]:
        parser.error(f"{args.verb} needs --{missing[0]}")
    {"learn": learn, "mark": mark}[args.verb](args)


if __name__ == "__main__":
    main()

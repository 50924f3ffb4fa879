"""Lumos-1 in one flat file: train on the CPU for a few minutes, then turn sentences into videos (paper, section 3).

    python examples/train_shapes.py --minutes 4 --out shapes.png

One shape moves over a plain ground, 128x128 pixels, 9 frames; the package's tokenizer makes 3 latent frames of 8x8 codes of it.
Letters: B batch, T latent frames, H W rows and columns of codes, M = H * W, S prompt, F ids of a frame, L sequence, V codes.
"""

import argparse
import math
import random
import time
from dataclasses import replace
from functools import partial

import torch
from torch.nn.functional import cross_entropy, pad
from torch.nn.functional import scaled_dot_product_attention as attend

from lumos.config import PACKAGED
from lumos.media.sheet import contact_sheet
from lumos.model.cache import Cache
from lumos.model.transformer import ModelConfig, Transformer
from lumos.tokenizer.model import load_tokenizer
from lumos.weights import find_weights
from lumos.worlds.shapes.motion import TRAVEL
from lumos.worlds.shapes.placing import WHOLE, place
from lumos.worlds.shapes.render import pack, render
from lumos.worlds.shapes.scene import Background, Scene
from lumos.worlds.shapes.thing import Thing

COLOURS, SHAPES, WAYS = ("red", "green", "blue"), ("circle", "square", "triangle"), ("left", "right", "up", "down")
WORDS = ("a", *COLOURS, *SHAPES, "moves", *WAYS)
SHOWN = ("a red circle moves right", "a blue square moves up", "a green triangle moves left", "a red square moves down")
CLIPS, BATCH, STEPS, GUIDANCE, HISTORY = 384, 8, 12, 1.2, 0.7
T, H, W = 3, 8, 8
M, HEAD, F = H * W, 3, 3 + H * (W + 1) + 1
# One vocabulary: words, structure, codes. MASK comes just before the first code: a masked code is code -1.
BEGIN, SEPARATOR, VIDEO, SECONDS, RATE, START, ROWS, COLUMNS, END, NEWLINE, MASK, FIRST_CODE = range(len(WORDS), len(WORDS) + 12)
gumbel = torch.distributions.Gumbel(0.0, 1.0).sample


def prompt_of(text):
    return [BEGIN, *map(WORDS.index, text.split()), SEPARATOR]


def frames_of(codes_BTHW, hidden):
    """Codes -> frames of ids_BTF: start, rows, columns, content (a newline ends every row), end; MASK where `hidden`."""
    content = pad(FIRST_CODE + codes_BTHW, (0, 1), value=NEWLINE).masked_fill(hidden, MASK).flatten(2)
    return torch.cat([torch.tensor([START, ROWS, COLUMNS]).expand(*content.shape[:2], 3), pad(content, (0, 1), value=END)], dim=2)


def sequence(prompt_BS, frames_BTF):
    """ids_BL, MM-RoPE's positions (t, h, w) position_L3, and which key every query sees, rule_LL."""
    B, first = len(prompt_BS), prompt_BS.shape[1] + HEAD
    ids_BL = torch.cat([prompt_BS, torch.tensor([VIDEO, SECONDS, RATE]).expand(B, HEAD), frames_BTF.flatten(1)], dim=1)
    # Words and structure: the index in the sequence, three times. Content: its place in the video, scaled back to pixels.
    position_L3 = torch.arange(ids_BL.shape[1])[:, None].repeat(1, 3)
    places = torch.cartesian_prod(4 * torch.arange(T), 16 * torch.arange(H), 16 * torch.arange(W + 1)).view(T, -1, 3)
    position_L3[first:].view(T, F, 3)[:, 3:-1] = places + first + 3
    # Every id before the frames is a block of its own, a frame is one block; no query sees a later block.
    block_L = torch.cat([torch.arange(first), first + torch.arange(T).repeat_interleave(F)])
    return ids_BL, position_L3, block_L[None, :] <= block_L[:, None]


def draw_mask(ratio_B1):
    """Random places of a frame's content, newlines included, [B, 1, H, W + 1]: the same for all frames, a temporal tube."""
    rank = torch.rand(len(ratio_B1), H * (W + 1)).argsort(1).argsort(1)
    return (rank < (ratio_B1 * H * (W + 1)).round()).view(-1, 1, H, W + 1)


def code_logits(model, frames_BTFD):
    return frames_BTFD[:, :, 3:-1].unflatten(2, (H, W + 1))[:, :, :, :-1] @ model.head[FIRST_CODE:].T


@torch.no_grad()
def generate(model, prompt_BS):
    """AR-DF sampling, frame by frame: reveal codes in steps, then cache the frame partly masked. Gives codes_BTHW."""
    B, config, branches = len(prompt_BS), model.config, []
    codes_BTHW, nothing = torch.full((B, T, H, W), -1), torch.zeros(B, 1, H, W + 1, dtype=torch.bool)
    for prompt in (prompt_BS, prompt_BS[:, :0]):  # the two branches of guidance
        ids_BL, position_L3, rule_LL = sequence(prompt, frames_of(codes_BTHW, nothing))
        first = prompt.shape[1] + HEAD
        cache = Cache(config.layers, B, config.kv_heads, len(rule_LL), config.head_width, torch.device("cpu"), torch.float32)
        model(ids_BL[:, :first], position_L3[None, :first], partial(attend, attn_mask=rule_LL[:first, :first]), cache)
        cache.commit(first)
        branches.append((cache, position_L3[first:].view(1, T, F, 3)))

    def look(t, codes_B1HW, hidden):  # logits_BMV of both branches; keys and values go behind what the cache holds
        ids_BF = frames_of(codes_B1HW, hidden)[:, 0]
        seen = [model(ids_BF, position[:, t], attend, cache) for cache, position in branches]
        return [code_logits(model, hidden_BFD[:, None]).flatten(1, 3) for hidden_BFD in seen]

    for t in range(T):
        codes_BM = codes_BTHW[:, t].flatten(1)
        for step in range(STEPS):
            left = math.floor(M * math.cos(math.pi / 2 * (step + 1) / STEPS))  # codes that stay masked
            conditional, without = look(t, codes_BM.view(B, 1, H, W), nothing)
            log_BMV = (without + GUIDANCE * (conditional - without)).log_softmax(-1)
            drawn_BM = (log_BMV + gumbel(log_BMV.shape)).argmax(-1)
            sure_BM = log_BMV.gather(-1, drawn_BM[..., None])[..., 0] + (1 - (step + 1) / STEPS) * gumbel((B, M))
            least_BM = sure_BM.where(codes_BM < 0, torch.inf).argsort(1)[:, :left]
            codes_BM = drawn_BM.where(codes_BM < 0, codes_BM).scatter(1, least_BM, -1)
        codes_BTHW[:, t] = codes_BM.view(B, H, W)
        look(t, codes_BTHW[:, t : t + 1], draw_mask(torch.full((B, 1), HISTORY)))  # history is partly masked, as in training
        for cache, _ in branches:
            cache.commit(F)
    return codes_BTHW


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--minutes", type=float, default=4.0, help="of training")
parser.add_argument("--out", default="shapes.png", help="picture of generated frames")
args = parser.parse_args()
tokenizer = load_tokenizer(find_weights(PACKAGED, "tokenizer"))
rng = random.Random(0)
kinds = [(rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(WAYS)) for _ in range(CLIPS)]
things = [place(rng, WHOLE, Thing(shape, colour, "large", "plain", 0.5, 0.5, way)) for colour, shape, way in kinds]
# Things start on the lattice of codes and cross one code a latent frame, so this world needs only some of the codes.
scenes = [Scene(Background("cream"), (replace(thing, x=round(thing.x * 4) / 4, y=round(thing.y * 4) / 4),)) for thing in things]
pixels = (render(pack(scenes[i : i + 16]), 4 * T - 3, 16 * W, fps=4 * W * TRAVEL["normally"]) for i in range(0, CLIPS, 16))
used, clips = torch.cat([tokenizer.encode(pixels_BCFHW) for pixels_BCFHW in pixels]).unique(return_inverse=True)
prompts = torch.tensor([prompt_of(f"a {colour} {shape} moves {way}") for colour, shape, way in kinds])
print(f"{CLIPS} clips, {len(used)} of {tokenizer.codebook_size} codes", flush=True)

model = Transformer(ModelConfig(FIRST_CODE + len(used), layers=3, width=128, heads=2, kv_heads=2, head_width=64, ffn=320))
model.initialise(torch.manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
start, step, progress = time.monotonic(), 0, 0.0
while progress < 1:  # AR-DF training: cross-entropy of the codes that a tube hides
    which = torch.randint(CLIPS, (BATCH,))
    codes_BTHW = clips[which]
    prompt_BS = prompts[which] if torch.rand(()) > 0.1 else prompts[which, :0]  # one step in ten without, for guidance
    tube = draw_mask(torch.cos(math.pi / 2 * torch.rand(BATCH, 1)).clamp(min=0.7)).expand(-1, T, -1, -1)
    ids_BL, position_L3, rule_LL = sequence(prompt_BS, frames_of(codes_BTHW, tube))
    hidden_BLD = model(ids_BL, position_L3[None], partial(attend, attn_mask=rule_LL))
    logits_BTHWV = code_logits(model, hidden_BLD[:, -T * F :].unflatten(1, (T, F)))
    loss_BTHW = cross_entropy(logits_BTHWV.movedim(-1, 1), codes_BTHW, reduction="none")
    loss_T = (loss_BTHW * tube[..., :-1]).sum((0, 2, 3)) / tube[..., :-1].sum((0, 2, 3))
    loss_T.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.param_groups[0]["lr"] = 6e-3 * min(1, (step + 1) / 30) * (1 - progress)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        print(f"{progress:4.0%}  step {step:4d}  loss by frame", *(f"{loss:.3f}" for loss in loss_T.tolist()), flush=True)
    step, progress = step + 1, (time.monotonic() - start) / (60 * args.minutes)

pixels_BCFHW = tokenizer.decode(used[generate(model, torch.tensor([prompt_of(text) for text in SHOWN]))])
contact_sheet(pixels_BCFHW, list(SHOWN)).save(args.out)
print(f"wrote {args.out}")

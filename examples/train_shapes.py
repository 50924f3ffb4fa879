"""Lumos-1 in one flat file: train on the CPU for a few minutes, then turn sentences into videos.

    python examples/train_shapes.py --minutes 4 --out shapes.png

The world: one shape that moves over a plain ground, 64x64 pixels, 9 frames. The tokenizer in the package makes 3 latent frames
of 8x8 codes of each clip. Text and codes are ids of one sequence; inside a frame every id sees every other, across frames time
is causal, and a frame is made by revealing masked codes over a few steps. Letters: B batch, T latent frames, H W rows and
columns of codes, N = H * (W + 1) content ids of a frame (a newline ends every row), L sequence, S prompt, V visual codes.
"""

import argparse
import itertools
import math
import random
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import lumos
from lumos.model.cache import Cache
from lumos.model.transformer import ModelConfig, Transformer
from lumos.shapes.placing import WHOLE, place
from lumos.shapes.render import pack, render
from lumos.shapes.scene import Background, Scene
from lumos.shapes.thing import Thing
from lumos.tokenizer.model import load_tokenizer
from lumos.training.metrics import sheet

COLOURS, SHAPES, WAYS = ("red", "blue", "green", "purple"), ("circle", "square", "triangle"), ("left", "right", "up", "down")
T, H, W = 3, 8, 8
N = H * (W + 1)
FRAME_LENGTH = 3 + N + 1  # start, rows, columns, content, end
CLIPS, BATCH, STEPS, GUIDANCE, HISTORY = 768, 16, 12, 3.0, 0.7

# One vocabulary: words, then structure, then the visual codes.
WORDS = ("a", *COLOURS, *SHAPES, "moves", *WAYS)
BEGIN, SEPARATOR, VIDEO, SECONDS, RATE, START, ROWS, COLUMNS, NEWLINE, END, MASK = range(len(WORDS), len(WORDS) + 11)
FIRST_CODE = MASK + 1


def scene_of(colour, shape, way, rng):
    return Scene(Background("cream"), (place(rng, WHOLE, Thing(shape, colour, "large", "plain", 0.5, 0.5, way, "quickly")),))


def prompt_of(colour, shape, way):
    return [BEGIN, *(WORDS.index(word) for word in ("a", colour, shape, "moves", way)), SEPARATOR]


def sequence(prompt_BS, content_BTN):
    """Section 3.1 and 3.2: ids_BL, MM-RoPE's position_L3 (t, h, w) and block_L of the attention rule."""
    B, S = prompt_BS.shape
    head_B3 = torch.tensor([VIDEO, SECONDS, RATE]).expand(B, 3)
    ids_BL = torch.cat([prompt_BS, head_B3, framed(content_BTN).flatten(1)], dim=1)
    # Text and structure have their index on all three axes. Content has its place in the video, scaled from codes to pixels.
    first = S + 3
    position_L3 = torch.arange(ids_BL.shape[1])[:, None].repeat(1, 3)
    place_THW3 = torch.stack(torch.meshgrid(4 * torch.arange(T), 8 * torch.arange(H), 8 * torch.arange(W + 1), indexing="ij"), -1)
    position_L3[first:].view(T, FRAME_LENGTH, 3)[:, 3:-1] = place_THW3.flatten(1, 2) + first + 3
    # Every id outside frames is a block of its own, a frame is one block, and a block sees itself and earlier ones.
    block_L = torch.cat([torch.arange(first), first + torch.arange(T).repeat_interleave(FRAME_LENGTH)])
    return ids_BL, position_L3, block_L


def framed(content_BTN):
    B, frames, _ = content_BTN.shape
    head = torch.tensor([START, ROWS, COLUMNS]).expand(B, frames, 3)
    return torch.cat([head, content_BTN, torch.tensor([END]).expand(B, frames, 1)], dim=2)


def content_of(codes_BTHW):
    newline = torch.full_like(codes_BTHW[..., :1], NEWLINE)
    return torch.cat([FIRST_CODE + codes_BTHW, newline], dim=-1).flatten(2)


def attend(rule_LS=None):
    return lambda query, key, value: scaled_dot_product_attention(query, key, value, attn_mask=rule_LS)


def loss_of(model, prompt_BS, codes_BTHW):
    """Section 3.3, training: cross-entropy of the codes under a temporal tube mask, the same places in every frame."""
    content_BTN = content_of(codes_BTHW)
    ratio_B1 = torch.cos(math.pi / 2 * torch.rand(len(prompt_BS), 1)).clamp(min=0.7)
    rank_BN = torch.rand(len(prompt_BS), N).argsort(1).argsort(1)
    tube_BTN = (rank_BN < (ratio_B1 * N).round())[:, None].expand_as(content_BTN)
    ids_BL, position_L3, block_L = sequence(prompt_BS, content_BTN.masked_fill(tube_BTN, MASK))
    hidden_BLD = model(ids_BL, position_L3[None], attend(block_L[None, :] <= block_L[:, None]))
    hidden_BTND = hidden_BLD[:, -T * FRAME_LENGTH :].unflatten(1, (T, FRAME_LENGTH))[:, :, 3:-1]
    target_BTN = tube_BTN & (content_BTN != NEWLINE)
    return cross_entropy(hidden_BTND[target_BTN] @ model.head[FIRST_CODE:].T, content_BTN[target_BTN] - FIRST_CODE)


@torch.no_grad()
def generate(model, prompt_BS):
    """Section 3.3, sampling: frame by frame with a cache, partly masked history and guidance -> codes_BTHW."""
    B, config, frames, branches = len(prompt_BS), model.config, [], []
    for prompt in (prompt_BS, prompt_BS[:, :0]):  # with the prompt, and without
        ids_BL, position_L3, block_L = sequence(prompt, torch.full((B, T, N), MASK))
        P, L = ids_BL.shape[1] - T * FRAME_LENGTH, ids_BL.shape[1]
        cache = Cache(config.layers, B, config.kv_heads, L, config.head_width, torch.device("cpu"), torch.float32)
        model(ids_BL[:, :P], position_L3[None, :P], attend(block_L[None, :P] <= block_L[:P, None]), cache)
        cache.commit(P)
        branches.append((position_L3[P:].view(T, FRAME_LENGTH, 3), cache))
    for t in range(T):

        def look(content_BN, t=t):
            """The frame's content in both branches: hidden states; keys and values go behind what the cache holds."""
            ids = framed(content_BN[:, None])[:, 0]
            return [model(ids, position[None, t], attend(), cache)[:, 3:-1] for position, cache in branches]

        content_BN = content_of(torch.full((B, 1, H, W), MASK - FIRST_CODE))[:, 0]
        code_N = (content_BN[0] == MASK).nonzero()[:, 0]
        for step in range(STEPS):
            with_prompt, without = (hidden[:, code_N] @ model.head[FIRST_CODE:].T for hidden in look(content_BN))
            log_BNV = (without + GUIDANCE * (with_prompt - without)).log_softmax(-1)
            drawn = torch.distributions.Categorical(logits=log_BNV).sample()
            hidden = content_BN[:, code_N] == MASK
            noise = -torch.empty(drawn.shape).exponential_().log() * (1 - (step + 1) / STEPS)
            sure = (log_BNV.gather(-1, drawn[..., None])[..., 0] + noise).where(hidden, torch.inf)
            left = math.floor(H * W * math.cos(math.pi / 2 * (step + 1) / STEPS))  # codes that stay masked
            codes = torch.where(hidden, FIRST_CODE + drawn, content_BN[:, code_N])
            content_BN[:, code_N] = codes.scatter(1, sure.argsort(1)[:, :left], MASK)
        frames.append(content_BN[:, code_N].view(B, H, W) - FIRST_CODE)
        unseen = torch.rand(B, N).argsort(1).argsort(1) < round(HISTORY * N)  # later frames see what training showed them
        look(content_BN.masked_fill(unseen, MASK))
        for _, cache in branches:
            cache.commit(FRAME_LENGTH)
    return torch.stack(frames, dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="of training")
    parser.add_argument("--out", type=Path, default=Path("shapes.png"), help="picture of generated frames")
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = load_tokenizer(Path(lumos.__file__).parent / "pretrained/tiny/tokenizer")

    kinds = [tuple(rng.choice(names) for names in (COLOURS, SHAPES, WAYS)) for _ in range(CLIPS)]
    packed = [pack([scene_of(*kind, rng) for kind in kinds[i : i + 16]]) for i in range(0, CLIPS, 16)]
    codes = torch.cat([tokenizer.encode(render(p, 4 * T - 3, 64)) for p in packed])
    used, codes = codes.unique(return_inverse=True)  # this world needs only some of the codes
    prompts = torch.tensor([prompt_of(*kind) for kind in kinds])
    print(f"{CLIPS} clips, {len(used)} of {tokenizer.codebook_size} codes", flush=True)

    model = Transformer(ModelConfig(FIRST_CODE + len(used), layers=4, width=192, heads=3, kv_heads=3, head_width=64, ffn=512))
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    start = time.monotonic()
    for step in itertools.count():
        progress = (time.monotonic() - start) / (60 * args.minutes)
        if progress >= 1:
            break
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30) * (1 - progress)
        which = torch.randint(CLIPS, (BATCH,))
        prompt_BS = prompts[which] if random.random() < 0.9 else prompts[which, :0]
        loss = loss_of(model, prompt_BS, codes[which])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step:4d}  {progress:4.0%}  loss {loss.item():.3f}", flush=True)

    shown = [("red", "circle", "right"), ("blue", "square", "up"), ("green", "triangle", "left"), ("purple", "circle", "down")]
    pixels = tokenizer.decode(used[generate(model, torch.tensor([prompt_of(*kind) for kind in shown]))])
    sheet([clip.transpose(0, 1)[::2] for clip in pixels]).save(args.out)
    print(f"wrote {args.out}: " + "; ".join(f"a {colour} {shape} moves {way}" for colour, shape, way in shown))


if __name__ == "__main__":
    main()

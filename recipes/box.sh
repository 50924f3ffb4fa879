#!/usr/bin/env bash
# From packages and three public folders to the weights of the package: tokenizer, model, benchmark, on all CUDA cards there are.
#
#   recipes/box.sh EMOJI NOTO CREATURES RUNS [MINUTES]
#
# EMOJI: a folder with assets/ and data.json, made as examples/emoji.md says. NOTO: the folder of Noto's Lotties named there.
# CREATURES: the folder or zip of GLB files that examples/creatures.md names. RUNS: where everything goes. MINUTES: how long this call
# may train (default: until all is done). Ctrl-C, a kill or the end of the minutes lose nothing: the same command goes on.
# Needs: pip install 'lumos[train,evaluate]' rlottie-python. Prints at the end what it took. More arguments for the two trainings, to
# rehearse with small ones: TOKENIZER_ARGS, MODEL_ARGS, EVALUATE_ARGS.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
emoji=$1 noto=$2 creatures=$3 runs=$4 minutes=${5:-100000}
here=$(cd "$(dirname "$0")/.." && pwd)
end=$(($(date +%s) + minutes * 60))
mkdir -p "$runs"

cards=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
lumos=(python -m lumos)
[ "$cards" -lt 2 ] || lumos=(torchrun --nproc-per-node "$cards" -m lumos)

# train RUN VERB ARGUMENTS...: begin the run or go on with it; stop it when the minutes are over, and then this script too.
train() {
    local run=$1 resume=() left=$((end - $(date +%s)))
    shift
    [ ! -f "$run/done" ] || return 0
    [ ! -d "$run/checkpoints" ] || resume=(--resume)
    [ "$left" -gt 0 ] || { echo "the minutes are over; the same command goes on"; exit 0; }
    timeout --foreground --signal=INT "$left" "${lumos[@]}" "$@" --stickers "$runs/stickers.jsonl" --creatures "$creatures" \
        --out "$run" "${resume[@]}" 2> >(tee "$run.log" >&2) || [ $? = 124 ]
    ! grep -q "stopped at step\|interrupted" "$run.log" || { echo "the same command goes on"; exit 0; }
    touch "$run/done"
}

# Seconds that a run trained, as its log says.
seconds() { tail -n 1 "$1/metrics.jsonl" | sed -n 's/.*"seconds": \([0-9]*\).*/\1/p'; }

[ -f "$runs/stickers.jsonl" ] || python "$here/examples/emoji.py" "$emoji/assets" "$emoji/data.json" "$runs/stickers.jsonl" "$noto"
train "$runs/tokenizer" train-tokenizer box ${TOKENIZER_ARGS:-}
train "$runs/model" train box --tokenizer "$runs/tokenizer/tokenizer" ${MODEL_ARGS:-}
python "$here/recipes/eight_bits.py" "$runs/model/model" "$runs/box"
python -m lumos evaluate shapes --weights "$runs/box" --out "$runs/benchmark" ${EVALUATE_ARGS:-}
card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | uniq -c || true)
echo "tokenizer $(seconds "$runs/tokenizer") s, model $(seconds "$runs/model") s, on ${card:-a CPU}, commit $(git -C "$here" rev-parse --short HEAD)"

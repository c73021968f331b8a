# Shared by every run script; sourced, never run.
#   NGPU      GPUs to train on (default: all that are visible; 0 = CPU)
#   NPROC     CPU processes when NGPU=0 (default 1)
#   OUT       where checkpoints and logs go (default: outputs/<script name> below the current folder)
#   --dry-run prints the command instead of running it; every other argument is handed to fairseq-train
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
BIN="$ROOT/.venv/bin"
[ -x "$BIN/fairseq-train" ] || BIN="$(dirname "$(command -v fairseq-train || echo /missing/fairseq-train)")"
SCRIPT_NAME="$(basename "$(dirname "$0")")_$(basename "$0" .sh)"
OUT="${OUT:-$PWD/outputs/$SCRIPT_NAME}"

DRY_RUN=0
ARGUMENTS=()
for argument in "$@"; do
  if [ "$argument" = "--dry-run" ]; then DRY_RUN=1; else ARGUMENTS+=("$argument"); fi
done

if [ -z "${NGPU:-}" ]; then
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    NGPU="$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c . || true)"
  else
    NGPU="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
  fi
fi

has_split() {  # has_split DATA SPLIT: whether shards of that split are there (prepare writes the last split last)
  compgen -G "$1/$2-*" > /dev/null && [ -e "$1/vocabulary.json" ]
}

if [ "$NGPU" = 0 ]; then
  # glibc hands every large tensor back to the kernel and faults it in again; keeping the heap saves a third of a CPU step
  export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
  export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
fi

require() {  # require NAME "what it is": a named environment variable must point at something that exists
  local value="${!1:-}"
  if [ -z "$value" ] || { [ "$DRY_RUN" = 0 ] && [ ! -e "$value" ]; }; then
    echo "$SCRIPT_NAME: set $1 to $2 (now: '${value}')" >&2
    exit 2
  fi
}

run() {  # run COMMAND...: prints it under --dry-run
  if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

train() {  # train DATA FLAG...: fairseq-train on NGPU GPUs or NPROC CPU processes; the caller's extra flags come last and win
  if [ "$DRY_RUN" = 0 ] && [ ! -x "$BIN/fairseq-train" ]; then
    echo "$SCRIPT_NAME: fairseq-train not found; run 'make env' first" >&2
    exit 2
  fi
  [ "$DRY_RUN" = 1 ] || mkdir -p "$OUT"
  local device=(--distributed-world-size "$NGPU")
  [ "$NGPU" != 0 ] || device=(--cpu --distributed-world-size "${NPROC:-1}")
  run "$BIN/fairseq-train" "$@" \
    --user-dir "$ROOT/ofaseg" --save-dir "$OUT" "${device[@]}" \
    --required-batch-size-multiple 1 --log-format json --log-file "$OUT/train.jsonl" \
    "${ARGUMENTS[@]}"
}

scores() {  # scores COMMAND CHECKPOINT DATA FLAG...: an `ofaseg` command that measures, on every GPU
  local command=("$BIN/ofaseg") device=()
  [ "$NGPU" != 0 ] || device=(--device cpu)
  (( NGPU <= 1 )) || command=("$BIN/torchrun" --nproc-per-node "$NGPU" -m ofaseg.cli)
  (( NGPU <= 1 )) || export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  run "${command[@]}" "$@" "${device[@]}"
}

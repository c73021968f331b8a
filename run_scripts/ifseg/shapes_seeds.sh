#!/usr/bin/env bash
# The table of docs/shapes_world.md: pretrained models of the drawn world, several seeds, before and after adaptation.
#   CHECKPOINTS="seed1.safetensors seed2.safetensors" DATA=shards run_scripts/ifseg/shapes_seeds.sh [--dry-run] [fairseq-train flags]
# SEEDS: adaptation seeds of the image-free rows (default "1 2 3"). ROWS: which rows (default: all; image_free_query and image_free_noise
# are variants of the published method). What has been measured under OUT is kept, so that an interrupted run goes on: use another
# OUT for other weights, data or flags.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEEDS="${SEEDS:-1 2 3}"
ROWS="${ROWS:-image_free supervised image_free_query image_free_noise}"
DATA="${DATA:-$OUT/shards}"
[ -n "${CHECKPOINTS:-}" ] || { echo "$SCRIPT_NAME: set CHECKPOINTS to exported models of run_scripts/pretrain/shapes.sh" >&2; exit 2; }

doubles="$(for checkpoint in $CHECKPOINTS; do basename "$checkpoint" .safetensors; done | sort | uniq -d)"
[ -z "$doubles" ] || { echo "$SCRIPT_NAME: CHECKPOINTS need different file names, several are called $doubles" >&2; exit 2; }

measure() {  # measure CHECKPOINT NAME FLAG...: scores on the test split, unless they are there
  local folder="$1" name="$2"; shift 2
  [ -e "$folder/scores.json" ] || run "$BIN/ofaseg" evaluate "$@" "$DATA" --split test --batch-size 16 --examples 4 --name "$name" --out "$folder"
}

adapt() {  # adapt FOLDER CHECKPOINT NAME FLAG...: trains and measures with and without feature propagation
  local folder="$1" checkpoint="$2" name="$3"; shift 3
  if [ ! -e "$folder/test/scores.json" ]; then
    run env OUT="$folder" DATA="$DATA" CHECKPOINT="$checkpoint" "$ROOT/run_scripts/ifseg/shapes.sh" "$@" "${ARGUMENTS[@]}"
  fi
  measure "$folder/test" "$name" "$folder/checkpoint_best.pt"
  measure "$folder/test_propagated" "$name, feature propagation" "$folder/checkpoint_best.pt" --resnet-iters 5
}

{ has_split "$DATA" test && has_split "$DATA" train; } || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1
for checkpoint in $CHECKPOINTS; do
  model="$OUT/$(basename "$checkpoint" .safetensors)"
  measure "$model/before" "no adaptation" "$checkpoint"
  for row in $ROWS; do
    case "$row" in
      image_free) for seed in $SEEDS; do adapt "$model/$row-$seed" "$checkpoint" "image-free" --seed "$seed"; done ;;
      image_free_noise) adapt "$model/$row-1" "$checkpoint" "image-free, noise" --artificial-noise 1 ;;
      image_free_query) adapt "$model/$row-1" "$checkpoint" "image-free, query decoder" --decoder-input-type query ;;
      supervised) adapt "$model/$row-1" "$checkpoint" "supervised" --supervised --train-image-encoder --no-photo-augmentation ;;
      *) echo "$SCRIPT_NAME: no row named $row" >&2; exit 2 ;;
    esac
  done
done
results=(--result "no adaptation=$OUT/*/before")
for row in $ROWS; do
  results+=(--result "${row//_/ }=$OUT/*/$row-*/test" --result "${row//_/ }, propagated=$OUT/*/$row-*/test_propagated")
done
run "$BIN/ofaseg" report "$OUT" --log "training=$OUT/*/${ROWS%% *}-*/train.jsonl" --title "The drawn world, several seeds" "${results[@]}"

#!/usr/bin/env bash
# The main job end to end on the embedded drawn world, minutes on two CPU cores: draw, adapt image-free, evaluate, report.
#   [OUT=outputs/quickstart] run_scripts/quickstart.sh
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="$(mkdir -p "${OUT:-outputs/quickstart}" && cd "${OUT:-outputs/quickstart}" && pwd)"
BIN="$ROOT/.venv/bin"
SECONDS=0
step() { printf '\n[%3ds] %s\n' "$SECONDS" "$*"; }

step "1/5  Drawing the world: scenes with label maps, held out for validation and test (training needs no image)"
compgen -G "$OUT/shards/test-*" > /dev/null || "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$OUT/shards" --format parquet --splits val,test

step "2/5  Before adaptation: the pretrained model (captions and boxes only), class embeddings made from the class names"
"$BIN/ofaseg" evaluate "$ROOT/ofaseg/assets/shapes/segofa_nano.safetensors" "$OUT/shards" --split test --batch-size 16 \
  --name "pretrained, no adaptation" --out "$OUT/before"

step "3/5  Image-free adaptation: fairseq-train --user-dir ofaseg, mosaics of class words instead of images"
NGPU="${NGPU:-0}" OUT="$OUT/train" DATA="$OUT/shards" "$ROOT/run_scripts/ifseg/shapes.sh" --log-interval 20 > "$OUT/train.out" 2>&1 \
  || { tail -n 30 "$OUT/train.out"; exit 1; }

step "4/5  After adaptation: test scenes the model never saw, with and without feature propagation"
"$BIN/ofaseg" evaluate "$OUT/train/checkpoint_best.pt" "$OUT/shards" --split test --batch-size 16 \
  --name "image-free adapted" --out "$OUT/after"
"$BIN/ofaseg" evaluate "$OUT/train/checkpoint_best.pt" "$OUT/shards" --split test --batch-size 16 --resnet-iters 5 \
  --name "image-free adapted, feature propagation" --out "$OUT/after_propagated" --examples 0

step "5/5  Report"
"$BIN/ofaseg" report "$OUT" --title "Image-free segmentation of a drawn world" \
  --result "image-free adapted=$OUT/after" --result "with feature propagation=$OUT/after_propagated" \
  --result "before adaptation=$OUT/before" --log "adaptation=$OUT/train/train.jsonl" \
  --notes "The model was pretrained on captions and boxes, adapted to the class names without images, and scored on held-out scenes."
printf '\nDone in %d s.\n  report    %s\n  pictures  %s\n  model     %s\n' \
  "$SECONDS" "$OUT/report.html" "$OUT/after" "$OUT/train/checkpoint_best.pt"

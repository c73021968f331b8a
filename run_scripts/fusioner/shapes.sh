#!/usr/bin/env bash
# Fusioner on the drawn world: towers of a SimSeg that was trained on captions, four of the twelve objects held out. CPU, no download.
#   [SEED=1] [DATA=shards] [SIMSEG=checkpoint_last.pt] run_scripts/fusioner/shapes.sh [--dry-run] [fairseq-train flags]
#   SIMSEG  checkpoint of run_scripts/simseg/shapes.sh; without one it is trained first, 800 updates (a quarter of an hour of a core)
# Two options that are not published make novel classes possible with so few names: --aligned-start and --foreground-weight (docs/fusioner.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA="${DATA:-$OUT/shards}"
if [ -z "${SIMSEG:-}" ]; then
  SIMSEG="$OUT/simseg/checkpoint_last.pt"
  [ -e "$SIMSEG" ] || run env OUT="$OUT/simseg" DATA="$DATA" "$ROOT/run_scripts/simseg/shapes.sh" --max-update 800
fi
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1
train "$DATA" \
  --task fusion_segmentation --criterion masked_binary_cross_entropy --arch fusioner_nano --novel-classes box,car,fish,moon \
  --text-tokenizer wordpiece --bert-vocab "$ROOT/ofaseg/assets/shapes/vocab.txt" --text-length 34 --templates name \
  --image-tower simseg_nano --image-checkpoint "$SIMSEG" --text-tower simseg_nano --text-checkpoint "$SIMSEG" \
  --pixel-statistics imagenet --patch-image-size 96 --aug-prob 0 --autocast bf16 \
  --optimizer fusioner_adamw --lr 1e-3 --lr-scheduler fusioner_cosine --warmup-num-update 30 --batch-size 16 --max-update 250 \
  --aligned-start --foreground-weight 2 --tower-precision bf16 \
  --valid-subset val --batch-size-valid 50 --no-epoch-checkpoints --num-workers 0 --log-interval 50 --seed "${SEED:-1}"
scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split test --batch-size 50 --exchange-names 1 --out "$OUT/test"
scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split test --batch-size 50 --exchange-names 1 --base --limit 600 --out "$OUT/test_base"

#!/usr/bin/env bash
# Fusioner on FSS-1000: frozen CLIP ViT-L/14, trained on the 520 classes of its train list, tested on the 240 of its test list.
#   CLIP=ViT-L-14.pt ROOT=FSS-1000 run_scripts/fusioner/fss1000.sh [--dry-run] [fairseq-train flags]
# The official code has no FSS-1000: schedule as on PASCAL-5i, CLIP's own pixel statistics, EPOCHS (default 100, 16,300 updates) are ours.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require CLIP "the file of CLIP's towers, such as ViT-L-14.pt"
DATA="${DATA:-$OUT/shards}"
if ! has_split "$DATA" test; then
  [ "$DRY_RUN" = 1 ] || [ -n "$RAW" ] || { echo "$SCRIPT_NAME: no split test in $DATA; set DATA to shards that have it, or ROOT to FSS-1000" >&2; exit 2; }
  run "$BIN/python" "$ROOT/data_prep/prepare.py" fss1000 --root "${RAW:-ROOT}" --out "$DATA" --natural-names
fi
train "$DATA" \
  --task fusion_segmentation --criterion masked_binary_cross_entropy --arch "${ARCH:-fusioner_vit_l14}" --clip-checkpoint "$CLIP" \
  --pixel-statistics clip --patch-image-size 224 --tower-precision "${TOWERS:-none}" \
  --optimizer fusioner_adamw --lr 1e-3 --lr-scheduler fusioner_cosine --warmup-epochs 10 \
  --batch-size 32 --max-epoch "${EPOCHS:-100}" --num-workers "${WORKERS:-8}" \
  --valid-subset val --batch-size-valid 32 --no-epoch-checkpoints --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric
scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split test --batch-size 32 --num-workers 2 --exchange-names 1 --out "$OUT/test"

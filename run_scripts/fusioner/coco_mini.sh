#!/usr/bin/env bash
# Fusioner on a small part of COCO 2017 with towers that fit everywhere: MobileNetV2 and CLIP's vectors of the 80 names. CPU, no download.
#   MOBILENET=mobilenet_v2_imagenet1001.npz TEXTS=coco80_clip_vitb32_a.npy ROOT=coco_mini run_scripts/fusioner/coco_mini.sh [FOLD] [--dry-run] [flags]
# MOBILENET: folded weights under torchvision's names. TEXTS: vectors of names, its .names.txt beside it. ROOT: train2017/, val2017/, annotations/.
# SEED: default 1. Trained on the 60 classes that the fold of COCO-20i leaves, tested on the other 20.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require MOBILENET "the weights of MobileNetV2, an .npz"
require TEXTS "text vectors of the class names, .npy or .npz"
DATA="${DATA:-$OUT/shards}"
if ! has_split "$DATA" val; then
  [ "$DRY_RUN" = 1 ] || [ -n "$RAW" ] || { echo "$SCRIPT_NAME: no split val in $DATA; set DATA to shards that have it, or ROOT to COCO" >&2; exit 2; }
  run "$BIN/python" "$ROOT/data_prep/prepare.py" coco_object --root "${RAW:-ROOT}" --out "$DATA" --label-files instances
fi
train "$DATA" \
  --task fusion_segmentation --criterion masked_binary_cross_entropy --foreground-weight 8 --arch fusioner_nano --benchmark coco20i --fold "$FOLD" \
  --image-tower mobilenet_v2_stride16 --image-checkpoint "$MOBILENET" --pixel-statistics half \
  --text-tower table --text-tokenizer table --text-embeddings "$TEXTS" --patch-image-size 224 --autocast bf16 \
  --optimizer fusioner_adamw --lr 1e-3 --lr-scheduler fusioner_cosine --warmup-num-update 50 --batch-size 16 --max-update 400 \
  --valid-subset val --batch-size-valid 32 --validate-interval 10 --no-epoch-checkpoints --num-workers 0 --log-interval 50 --seed "${SEED:-1}"
scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split val --batch-size 32 --exchange-names 1 --out "$OUT/test"
scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split val --batch-size 32 --exchange-names 1 --base --out "$OUT/test_base"

#!/usr/bin/env bash
# FreeSeg on real street photos: CamVid, 11 classes, a small model trained with label maps from scratch on a CPU or GPU.
#   CAMVID=folder with images/ labels/ classes.txt [CLIP=file] [SEED=1] run_scripts/freeseg/camvid.sh [--dry-run] [fairseq-train flags]
#   CLIP  towers of freeseg_nano's size (clip/checkpoint_last.pt of shapes.sh); without one texts go through a tower of random weights:
#         eleven fixed vectors, which is all that a closed list of classes needs
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require CAMVID "the CamVid folder (images/{train,val,test}, labels/{train,val,test}, classes.txt)"
DATA="${DATA:-$OUT/shards}"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" camvid --root "$CAMVID" --out "$DATA" --format parquet
TOWERS=(--random-towers)
[ -z "${CLIP:-}" ] || TOWERS=(--clip-checkpoint "$CLIP")
train "$DATA" \
  --task unified_segmentation --tasks semantic --arch freeseg_nano --criterion mask_matching --patch-image-size 192 "${TOWERS[@]}" --without-regions \
  --optimizer torch_adamw --weight-decay 0.05 --clip-norm 1.0 --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.05 \
  --batch-size 8 --max-epoch 24 --valid-subset val --batch-size-valid 8 --validate-interval 4 --save-interval 4 --no-epoch-checkpoints \
  --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --num-workers 0 --log-interval 20 --seed "${SEED:-1}"

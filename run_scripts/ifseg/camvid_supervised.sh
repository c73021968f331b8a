#!/usr/bin/env bash
# Supervised segmentation of real street photos: CamVid, 11 classes, a small model trained from scratch on a CPU or GPU.
#   CAMVID=folder with images/ labels/ classes.txt BPE_DIR=... run_scripts/ifseg/camvid_supervised.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
require CAMVID "the CamVid folder (images/{train,val,test}, labels/{train,val,test}, classes.txt)"
require BPE_DIR "the folder of encoder.json, vocab.bpe and dict.txt"
DATA="${DATA:-$OUT/shards}"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" camvid --root "$CAMVID" --out "$DATA" --format parquet
train "$DATA" \
  --task seq2seq_segmentation --supervised --arch segofa_nano --criterion seg_token_cross_entropy \
  --bpe-dir "$BPE_DIR" --code-dict-size 8192 --num-bins 1000 --patch-image-size 192 --orig-patch-image-size 192 --full-context-alignment \
  --train-image-encoder --train-class-embedding \
  --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
  --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.05 \
  --batch-size 8 --max-epoch 24 --valid-subset val --batch-size-valid 8 --validate-interval 2 --save-interval 2 \
  --keep-best-checkpoints 1 --keep-last-epochs 1 \
  --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --seed 1

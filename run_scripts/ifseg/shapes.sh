#!/usr/bin/env bash
# IFSeg on the embedded drawn world: image-free adaptation of the shipped pretrained model, minutes on a CPU.
#   [DATA=shards] [CHECKPOINT=...] run_scripts/ifseg/shapes.sh [--dry-run] [fairseq-train flags]
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
CHECKPOINT="${CHECKPOINT:-$ROOT/ofaseg/assets/shapes/segofa_nano.safetensors}"
require CHECKPOINT "the pretrained model of the drawn world (run_scripts/pretrain/shapes.sh makes one)"
DATA="${DATA:-$OUT/shards}"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --splits val,test
train "$DATA" \
  --task seq2seq_segmentation --arch segofa_nano --criterion seg_token_cross_entropy \
  --bpe-dir "$ROOT/ofaseg/assets/shapes" --pretrained "$CHECKPOINT" --low-resolution-loss \
  --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
  --lr 1e-3 --lr-scheduler cosine_warmup_ratio \
  --batch-size 16 --epoch-size 800 --max-epoch 4 --valid-subset val --batch-size-valid 16 \
  --no-epoch-checkpoints --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --seed 1

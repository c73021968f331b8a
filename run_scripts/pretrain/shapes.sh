#!/usr/bin/env bash
# Small OFA-style pretraining on the drawn world: captions, region names, infilling, copying; no masks. The recipe of the shipped
# weights, about 25 minutes on one free core:
#   SEED=1 DATA=shards OUT=seed1 run_scripts/pretrain/shapes.sh [--dry-run] [fairseq-train flags]
#   tools/export_model.py seed1/checkpoint_last.pt seed1.safetensors --half
# DATA is a folder of shards (drawn when missing). To go on from other weights: --finetune-from-model FILE.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEED="${SEED:-1}"
DATA="${DATA:-$OUT/shards}"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1
train "$DATA" \
  --task vision_language_pretraining --arch segofa_nano --criterion vision_language_pretraining \
  --bpe-dir "$ROOT/ofaseg/assets/shapes" --num-bins 12 --code-dict-size 0 --patch-image-size 96 --init-std 0.08 \
  --train-image-encoder --train-token-embedding --train-text-decoder \
  --caption-task 0.25 --crop-task 0.45 --box-task 0.05 --infill-task 0.15 --copy-task 0.1 --substitution 0.5 \
  --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
  --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.025 --max-update 6000 --batch-size 20 --autocast bf16 \
  --valid-subset val --batch-size-valid 50 --transfer-probe --validate-interval 100 --save-interval 100 \
  --save-interval-updates 700 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50 --seed "$SEED"

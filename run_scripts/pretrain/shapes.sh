#!/usr/bin/env bash
# Small OFA-style pretraining on the drawn world: captions, region names, infilling, copying; no masks. The shipped weights come
# from two stages, 12 + 14 minutes with one core each:
#   SEED=1 DATA=shards OUT=stage1 run_scripts/pretrain/shapes.sh [--dry-run] [fairseq-train flags]
#   SEED=1 DATA=shards OUT=stage2 START=stage1/checkpoint_last.pt run_scripts/pretrain/shapes.sh
# DATA is a folder of shards (drawn when missing), START a checkpoint whose weights the second stage goes on from.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEED="${SEED:-1}"
DATA="${DATA:-$OUT/shards}"
STAGE=(--max-update 2800 --lr 1e-3 --warmup-ratio 0.025)
if [ -n "${START:-}" ]; then
  require START "a checkpoint of the first stage"
  STAGE=(--max-update 2600 --lr 7e-4 --warmup-ratio 0.05 --finetune-from-model "$START")
fi
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1
train "$DATA" \
  --task vision_language_pretraining --arch segofa_nano --criterion vision_language_pretraining \
  --bpe-dir "$ROOT/ofaseg/assets/shapes" --num-bins 12 --code-dict-size 0 --patch-image-size 96 --init-std 0.08 \
  --train-image-encoder --train-token-embedding --train-text-decoder \
  --caption-task 0.25 --crop-task 0.45 --box-task 0.05 --infill-task 0.15 --copy-task 0.1 --substitution 0.5 \
  --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
  --lr-scheduler cosine_warmup_ratio "${STAGE[@]}" --batch-size 20 --autocast bf16 \
  --valid-subset val --batch-size-valid 50 --transfer-probe --validate-interval 100 --save-interval 100 \
  --save-interval-updates 700 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50 --seed "$SEED"

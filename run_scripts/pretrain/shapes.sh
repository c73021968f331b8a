#!/usr/bin/env bash
# Small OFA-style pretraining on the drawn world: captions, region names, infilling, copying; no masks. The shipped weights come from it.
#   SEED=1 DATA=folder of shards (made when missing) run_scripts/pretrain/shapes.sh [--dry-run] [fairseq-train flags]
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEED="${SEED:-1}"
DATA="${DATA:-$OUT/shards}"
[ -e "$DATA/vocabulary.json" ] || run "$BIN/python" -m data_prep.prepare shapes --out "$DATA" --format parquet --seed 1
train "$DATA" \
  --task vision_language_pretraining --arch segofa_nano --criterion vision_language_pretraining \
  --bpe-dir "$ROOT/ofaseg/assets/shapes" --num-bins 12 --code-dict-size 0 --patch-image-size 96 --init-std 0.08 \
  --train-image-encoder --train-token-embedding --train-text-decoder \
  --caption-task 0.25 --crop-task 0.45 --box-task 0.05 --infill-task 0.15 --copy-task 0.1 --substitution 0.5 \
  --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
  --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.025 \
  --batch-size 20 --max-update 2800 --autocast bf16 \
  --valid-subset val --batch-size-valid 50 --transfer-probe --validate-interval 100 --save-interval 100 \
  --save-interval-updates 700 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50 --seed "$SEED"

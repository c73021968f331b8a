#!/usr/bin/env bash
# SimSeg on the drawn world: the nano model trained on captions alone, then zero-shot segmentation of the test scenes. CPU, no download.
#   [SEED=1] [DATA=shards] run_scripts/simseg/shapes.sh [--dry-run] [fairseq-train flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA="${DATA:-$OUT/shards}"
BERT_VOCAB="$ROOT/ofaseg/assets/shapes/vocab.txt"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1
train "$DATA" \
  --task image_text_pretraining --arch simseg_nano --criterion image_text_contrastive \
  --bert-vocab "$BERT_VOCAB" --text-length 34 --templates name --patch-image-size 96 --no-autoaugment \
  --dropout 0.0 --optimizer torch_adamw --weight-decay 0.05 --clip-norm 1.0 \
  --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.025 --batch-size 64 --max-update 1500 --autocast bf16 \
  --valid-subset val --batch-size-valid 50 --seg-data "$DATA" --seg-limit 100 --seg-batch-size 20 \
  --validate-interval 4 --save-interval 4 --no-epoch-checkpoints --log-interval 50 --num-workers 0 --seed "${SEED:-1}"
ARGUMENTS=()  # those were for training
MODEL="$OUT/checkpoint_last.pt"
OUT="$OUT/test"
scores evaluate "$MODEL" "$DATA" --split test --batch-size 20 --name "SimSeg nano, captions alone"

#!/usr/bin/env bash
# SimSeg's training on CC3M + CC12M from random weights, as its author describes it: batches of 4,096 pairs, 20 epochs.
#   DATA=cc3m,cc12m BERT_VOCAB=vocab.txt [SEG_DATA=shards] run_scripts/simseg/train_captions.sh [--dry-run] [fairseq-train flags]
# DATA: folders with train_anno.csv and train/ (columns image, caption), Parquet, shards; several by commas.
#   ARCH      simseg_vit_s (default) or simseg_vit_b
#   SUB_BATCH pairs that one GPU holds at once (default 128); the loss sees the whole batch all the same
#   VALID     split of DATA for retrieval in validation (default val); DATA without one: add --disable-validation
#   SEG_DATA  labelled shards whose zero-shot mIoU is watched
#   LR        1e-4, of the published configuration; the rate of the released models is not published
# The floor of the rate is a tenth of it (min_lr_scale 0.1). Weight decay is that of all tensors, as published;
# --no-decay-vectors spares biases, norms and the temperature.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -n "${DATA:-}" ] || { echo "$SCRIPT_NAME: set DATA to photos with captions, see the head of this script" >&2; exit 2; }
require BERT_VOCAB "the vocab.txt of bert-base-uncased"
processes=$(( NGPU > 0 ? NGPU : ${NPROC:-1} ))
if (( 4096 % processes )); then
  echo "$SCRIPT_NAME: the published batch of 4096 cannot be shared by $processes processes; set NGPU or NPROC to a power of two" >&2
  exit 2
fi
LR="${LR:-1e-4}"
train "$DATA" \
  --task image_text_pretraining --arch "${ARCH:-simseg_vit_s}" --criterion image_text_contrastive \
  --bert-vocab "$BERT_VOCAB" --text-length 25 --caption-augmentation --patch-image-size 224 --image-size 224 --eval-image-size 288 \
  --batch-size $(( 4096 / processes )) --sub-batch-size "${SUB_BATCH:-128}" \
  --optimizer torch_adamw --adam-betas "(0.9, 0.98)" --adam-eps 1e-6 --weight-decay 0.2 \
  --lr "$LR" --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.025 --warmup-init-lr 0 --min-lr "$(awk "BEGIN { print $LR * 0.1 }")" \
  --max-epoch 20 --autocast "${AUTOCAST:-bf16}" --num-workers "${WORKERS:-8}" \
  --valid-subset "${VALID:-val}" --batch-size-valid 64 ${SEG_DATA:+--seg-data "$SEG_DATA"} \
  --keep-last-epochs 2 --save-interval-updates 2000 --keep-interval-updates 1 --seed 1

#!/usr/bin/env bash
# FreeSeg on the drawn world: a small CLIP from captions and boxes, prompts and masks of 13 classes, four kinds of objects held out. CPU, no download.
#   [SEED=1] [DATA=shards] [CLIP=checkpoint_last.pt] [PROMPTS=checkpoint_last.pt] run_scripts/freeseg/shapes.sh [--dry-run] [fairseq-train flags of stage two]
#   CLIP, PROMPTS  of an earlier run, its clip/checkpoint_last.pt and prompts/checkpoint_last.pt; without them they are trained first.
#                  PROMPTS=none: CLIP reads bare names
#   SEED           of every stage that is trained; the drawn scenes are the same for all
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
FOLDER="$OUT" MASK_FLAGS=("${ARGUMENTS[@]}")
DATA="${DATA:-$OUT/shards}"
has_split "$DATA" test || run "$BIN/python" "$ROOT/data_prep/prepare.py" shapes --out "$DATA" --format parquet --seed 1 --novel box,car,fish,moon
ARGUMENTS=()
if [ -z "${CLIP:-}" ]; then
  OUT="$FOLDER/clip" CLIP="$FOLDER/clip/checkpoint_last.pt" REGIONS="$FOLDER/regions"
  has_split "$REGIONS" val || run "$BIN/python" "$ROOT/data_prep/prepare.py" regions --root "$DATA" --out "$REGIONS" --format parquet --splits train,val
  [ -e "$CLIP" ] || train "$DATA,$REGIONS" \
    --task image_text_pretraining --arch clip_nano --criterion image_text_contrastive --text-tokenizer clip_bpe --text-length 40 \
    --templates name --patch-image-size 32 --no-autoaugment --optimizer torch_adamw --weight-decay 0.05 --clip-norm 1.0 \
    --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.05 --batch-size 128 --max-update 1355 --total-num-update 2000 \
    --valid-subset val --batch-size-valid 50 --validate-interval 3 --save-interval 3 --no-epoch-checkpoints --num-workers 0 --log-interval 50 --seed "${SEED:-1}"
fi
if [ -z "${PROMPTS:-}" ]; then
  OUT="$FOLDER/prompts" PROMPTS="$FOLDER/prompts/checkpoint_last.pt"
  [ -e "$PROMPTS" ] || train "$DATA" \
    --task prompt_learning --arch freeseg_prompt_nano --criterion region_cross_entropy --clip-checkpoint "$CLIP" --samples-per-class 128 \
    --optimizer torch_adamw --weight-decay 0 --clip-norm 1.0 --lr 0.01 --lr-scheduler cosine_constant_warmup --warmup-updates 10 \
    --batch-size 32 --max-update 408 --valid-subset val --batch-size-valid 50 --no-epoch-checkpoints --num-workers 0 --log-interval 50 --seed "${SEED:-1}"
fi
OUT="$FOLDER/masks" ARGUMENTS=("${MASK_FLAGS[@]}")
PROMPT_FLAGS=(--prompt-checkpoint "$PROMPTS")
[ "$PROMPTS" != none ] || PROMPT_FLAGS=(--class-prompt-length 0 --task-prompt-length 0)
train "$DATA" \
  --task unified_segmentation --arch freeseg_nano --criterion mask_matching --patch-image-size 96 \
  --clip-checkpoint "$CLIP" "${PROMPT_FLAGS[@]}" --frozen-prompts \
  --optimizer torch_adamw --weight-decay 0.05 --clip-norm 1.0 --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.05 \
  --batch-size 16 --max-update 1000 --disable-validation --no-epoch-checkpoints --num-workers 0 --log-interval 50 --seed "${SEED:-1}"
ARGUMENTS=()  # those were for training
scores evaluate "$OUT/checkpoint_last.pt" "$DATA" --split test --batch-size 20 --tasks semantic,instance,panoptic --out "$FOLDER/test"

# What the FreeSeg scripts share: the two published stages. Sourced, never run.
#   CLIP     file of the frozen towers: OpenAI's ViT-B-16.pt, or open_clip's weights of that model
#   DATA     folder of shards with split train (base classes) and val; made from ROOT, the raw dataset, when it is not there
#   PROMPTS  checkpoint of stage one, which stage two starts from
#   BACKBONE for stage two: ImageNet weights of the image encoder, R-50.pkl or R-103.pkl
#   DEPTH    r50 (default) or r101c
#   BATCH    regions or photos that a process holds at once (default: its whole share of the published batch)
RAW="${RAW:-${ROOT:-}}"
STAGE=both
if [[ "${1:-}" =~ ^[12]$ ]]; then
  STAGE="$1"
  shift
elif [[ "${1:-}" = --dry-run && "${2:-}" =~ ^[12]$ ]]; then
  STAGE="$2"
  set -- --dry-run "${@:3}"
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
DEPTH="${DEPTH:-r50}"
case "$DEPTH" in
  r50|r101c) ;;
  *) echo "$SCRIPT_NAME: set DEPTH to r50 or r101c (now: '$DEPTH')" >&2; exit 2 ;;
esac

freeseg_shards() {  # freeseg_shards DATASET [prepare flags]: sets DATA; makes splits of all classes from ROOT when val is not there
  DATA="${DATA:-$OUT/shards}"
  has_split "$DATA" val && return
  [ "$DRY_RUN" = 1 ] || [ -n "$RAW" ] || { echo "$SCRIPT_NAME: no split val in $DATA; set DATA to shards that have it, or ROOT to the raw $1" >&2; exit 2; }
  run "$BIN/python" "$ROOT/data_prep/prepare.py" "$1" --root "${RAW:-ROOT}" --out "$DATA" "${@:2}"
}

share() {  # share BATCH: sets BATCH_FLAGS, so that all processes together read so many photos per update
  local processes=$(( NGPU > 0 ? NGPU : ${NPROC:-1} ))
  if (( $1 % processes )); then
    echo "$SCRIPT_NAME: the published batch of $1 cannot be shared by $processes processes; set NGPU or NPROC to a power of two" >&2
    exit 2
  fi
  local one=$(( $1 / processes )) held="${BATCH:-$(( $1 / processes ))}"
  if (( held < 1 || one % held )); then
    echo "$SCRIPT_NAME: BATCH=$held does not divide the $one photos of a process; set it to a number that does" >&2
    exit 2
  fi
  BATCH_FLAGS=(--batch-size "$held" --update-freq $(( one / held )))
}

prompt_stage() {  # prompt_stage UPDATES REGIONS_PER_CLASS DECAY FLAG...: 32 regions per update, SGD, cosine
  require CLIP "the file of CLIP's towers, such as ViT-B-16.pt"
  share 32
  train "$DATA" \
    --task prompt_learning --criterion region_cross_entropy --arch freeseg_prompt_b16 --clip-checkpoint "$CLIP" \
    --samples-per-class "$2" --optimizer sgd --momentum 0.9 --weight-decay "$3" --clip-norm 0.01 \
    --lr 0.02 --lr-scheduler cosine_constant_warmup --warmup-updates 100 --warmup-factor 0.005 --max-update "$1" \
    "${BATCH_FLAGS[@]}" --batch-size-valid 32 --valid-subset val --num-workers "${WORKERS:-4}" \
    --validate-interval 9999 --validate-interval-updates $(( $1 / 8 )) --save-interval-updates $(( $1 / 8 )) --keep-interval-updates 1 \
    --no-epoch-checkpoints --best-checkpoint-metric acc_top1 --maximize-best-checkpoint-metric --seed "${SEED:-42}" "${@:4}"
}

mask_stage() {  # mask_stage UPDATES BATCH LR DECAY CROP FLAG...: AdamW, the polynomial of power 0.9
  require CLIP "the file of CLIP's towers, such as ViT-B-16.pt"
  require PROMPTS "a checkpoint of the first stage"
  require BACKBONE "the ImageNet weights of the image encoder, R-50.pkl or R-103.pkl"
  share "$2"
  train "$DATA" \
    --task unified_segmentation --criterion mask_matching --arch "freeseg_$DEPTH" \
    --clip-checkpoint "$CLIP" --prompt-checkpoint "$PROMPTS" --frozen-prompts --image-checkpoint "$BACKBONE" --patch-image-size "$5" \
    --optimizer freeseg_adamw --adam-betas "(0.9, 0.999)" --adam-eps 1e-8 --lr "$3" --weight-decay "$4" --clip-norm 0.01 \
    --lr-scheduler polynomial_decay --power 0.9 --warmup-updates 0 --max-update "$1" --total-num-update "$1" \
    "${BATCH_FLAGS[@]}" --batch-size-valid 1 --valid-without-regions --valid-subset val --validate-interval 9999 --validate-interval-updates 5000 \
    --save-interval-updates 5000 --keep-interval-updates 1 --no-epoch-checkpoints --num-workers "${WORKERS:-4}" \
    --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --seed "${SEED:-42}" "${@:6}"
}

both_stages() {  # both_stages: what STAGE asks for, by the script's learn_prompts and learn_masks, in $OUT/prompts and $OUT/masks
  local folder="$OUT"
  PROMPTS="${PROMPTS:-$folder/prompts/checkpoint_best.pt}"
  if [ "$STAGE" != 2 ]; then OUT="$folder/prompts"; learn_prompts; fi
  if [ "$STAGE" != 1 ]; then OUT="$folder/masks"; learn_masks; fi
}

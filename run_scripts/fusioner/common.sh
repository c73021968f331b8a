# What the Fusioner scripts share. Sourced, never run. First argument of a script: the fold, 0..3 (default 0).
#   CLIP        file of the frozen towers: OpenAI's ViT-L-14.pt, or open_clip's weights of that model
#   ARCH        fusioner_vit_l14 (default, as published), fusioner_vit_b16, fusioner_vit_b32
#   DATA        folder of shards, one for all folds (default: $OUT/shards); made from ROOT, the raw dataset, when it is not there
#   PAIR_LISTS  folder of the published lists of pairs; without it, all pairs that the label maps show
#   PAIRS       whose lists: official (default) or hsnet
RAW="${RAW:-${ROOT:-}}"
FOLD="${FOLD:-0}"
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
  FOLD="$1"
  shift
elif [[ "${1:-}" = --dry-run && "${2:-}" =~ ^[0-9]+$ ]]; then
  FOLD="$2"
  set -- --dry-run "${@:3}"
fi
[[ "$FOLD" =~ ^[0-3]$ ]] || { echo "$(basename "$0"): there are the folds 0..3, not $FOLD" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ "$OUT" != "$PWD/outputs/$SCRIPT_NAME" ] || OUT="$OUT-fold$FOLD"

fusioner_fold() {  # fusioner_fold DATASET STATISTICS SUBSET EVALUATION_BATCH: trains on the base classes of a fold, tests the novel ones
  require CLIP "the file of CLIP's towers, such as ViT-L-14.pt"
  DATA="${DATA:-$OUT/shards}"
  if ! has_split "$DATA" val; then
    [ "$DRY_RUN" = 1 ] || [ -n "$RAW" ] || { echo "$SCRIPT_NAME: no split val in $DATA; set DATA to shards that have it, or ROOT to the raw $1" >&2; exit 2; }
    run "$BIN/python" "$ROOT/data_prep/prepare.py" "$1" --root "${RAW:-ROOT}" --out "$DATA"
  fi
  local processes=$(( NGPU > 0 ? NGPU : ${NPROC:-1} ))
  if (( 32 % processes )); then
    echo "$SCRIPT_NAME: the published batch of 32 cannot be shared by $processes processes; set NGPU or NPROC to a power of two" >&2
    exit 2
  fi
  local pairs=()
  [ -z "${PAIR_LISTS:-}" ] || pairs=(--pairs "${PAIRS:-official}" --pair-lists "$PAIR_LISTS")
  train "$DATA" \
    --task fusion_segmentation --criterion masked_binary_cross_entropy --arch "${ARCH:-fusioner_vit_l14}" --clip-checkpoint "$CLIP" \
    --benchmark "$1" --fold "$FOLD" "${pairs[@]}" --test-subset "$3" --pixel-statistics "$2" --patch-image-size 224 \
    --optimizer fusioner_adamw --lr 1e-3 --decoder-lr 1e-3 --adam-betas "(0.9, 0.999)" --adam-eps 1e-8 \
    --lr-scheduler fusioner_cosine --warmup-epochs 10 --min-lr 2e-6 --scheduled-weight-decay 0.01 --final-weight-decay 0.4 \
    --batch-size $(( 32 / processes )) --max-epoch "${EPOCHS:-510}" --num-workers "${WORKERS:-8}" --tower-precision "${TOWERS:-none}" \
    --valid-subset val --batch-size-valid 32 --no-epoch-checkpoints --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric
  scores fewshot "$OUT/checkpoint_last.pt" "$DATA" --split val --batch-size "$4" --num-workers 2 --out "$OUT/test" --name "$1, fold $FOLD"
}

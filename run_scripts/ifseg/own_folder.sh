#!/usr/bin/env bash
# From your own folder to a trained model and a report: check, convert, train, evaluate, report, gallery.
#   FOLDER=my_photos run_scripts/ifseg/own_folder.sh [--dry-run] [fairseq-train flags]
# FOLDER holds images/, labels/ (one PNG of class numbers per photo, same name) and classes.txt (one class name per line); with
# images/train, images/val and the same below labels/, the split is yours, else one photo in five is held out for validation.
#   IMAGES LABELS CLASS_NAMES  other names of the two sub-folders and of the class list
#   PREPARE_FLAGS              more flags for the converter, such as "--label-offset 1 --ignore 0 --val-fraction 0.1"
#   CHECKPOINT BPE_DIR [ARCH]  a pretrained model and its tokenizer folder: image-free, the photos only measure; SUPERVISED=1 trains on them
# Without CHECKPOINT a small model is trained from random weights on the photos, 1,200 updates.
# Results go to OUT (default outputs/ifseg_own_folder_<name of the folder>). The same command again goes on with a run that was
# stopped; it starts nothing where OUT holds a model of other photos, label maps or flags.
FOLDER="${FOLDER:-${ROOT:-}}"
NAME="$(basename "$(cd "${FOLDER:-.}" 2>/dev/null && pwd || echo "$FOLDER")")"
OUT="${OUT:-$PWD/outputs/ifseg_own_folder_$NAME}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require FOLDER "your folder, with images/ labels/ classes.txt"
DATA="${DATA:-$OUT/shards}"
SUPERVISED="${SUPERVISED:-$([ -n "${CHECKPOINT:-}" ] && echo 0 || echo 1)}"

step() { [ "$DRY_RUN" = 1 ] || printf '\n[%4ds] %s\n' "$SECONDS" "$*"; }

supervised_train() {  # supervised_train DATA FLAG...: a small model at 192 px; from CHECKPOINT where there is one
  train "$@" ${CHECKPOINT:+--pretrained "$CHECKPOINT"} \
    --task seq2seq_segmentation --supervised --arch "${ARCH:-segofa_nano}" --criterion seg_token_cross_entropy \
    --patch-image-size 192 --orig-patch-image-size 192 --full-context-alignment \
    --train-image-encoder --train-class-embedding \
    --optimizer torch_adamw --weight-decay 0.01 --clip-norm 1.0 \
    --lr 1e-3 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0.05 \
    --batch-size 8 --max-update 1200 --batch-size-valid 8 \
    --validate-interval 1000000 --save-interval 1000000 --save-interval-updates 200 --keep-interval-updates 1 \
    --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --seed 1
}

layout=(${IMAGES:+--images "$IMAGES"} ${LABELS:+--label-maps "$LABELS"} ${CLASS_NAMES:+--class-names "$CLASS_NAMES"})
read -r -a more <<< "${PREPARE_FLAGS:-}"
need=(--need val)
[ "$SUPERVISED" != 1 ] || need+=(--need train)

step "Checking $FOLDER and converting it to shards"
run "$BIN/python" "$ROOT/tools/convert_folder.py" --root "$FOLDER" --out "$DATA" --run "$OUT" "${need[@]}" "${layout[@]}" "${more[@]}"
step "Checking the shards"
run "$BIN/ofaseg" doctor "$DATA"
if [ -z "${CHECKPOINT:-}${BPE_DIR:-}" ]; then
  BPE_DIR="$OUT/words"
  run "$BIN/python" "$ROOT/tools/word_dictionary.py" "$DATA" --out "$BPE_DIR"
fi
require BPE_DIR "the tokenizer folder of CHECKPOINT"

step "Training"
if [ "$SUPERVISED" = 1 ]; then
  supervised_train "$DATA" --bpe-dir "$BPE_DIR" --valid-subset val
else
  ifseg_train "$DATA" --valid-subset val
fi

step "Evaluating, report and gallery"
device=()
[ "$NGPU" != 0 ] || device=(--device cpu)
run "$BIN/ofaseg" evaluate "$OUT/checkpoint_best.pt" "$DATA" --split val --batch-size 8 "${device[@]}" --name model --out "$OUT/evaluation"
run "$BIN/ofaseg" browse "$DATA" --title "$NAME" --out "$OUT/gallery"
run "$BIN/ofaseg" report "$OUT" --title "Segmentation of $NAME"
step "Done: $OUT/report.html, $OUT/gallery/index.html, $OUT/checkpoint_best.pt"

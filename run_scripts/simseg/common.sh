# What the SimSeg scripts share. Sourced, never run.
#   CHECKPOINT  simseg.vit-s.pth, simseg.vit-b.pth, or a checkpoint of ours
#   BERT_VOCAB  vocab.txt of bert-base-uncased (default: beside the checkpoint, or as the checkpoint says)
#   DATA        folder of shards (default: $OUT/shards); made from ROOT, the raw dataset, when its split is not there
RAW="${RAW:-${ROOT:-}}"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

scores() {  # scores COMMAND CHECKPOINT DATA FLAG...: an `ofaseg` command that measures, on every GPU; the caller's flags come last and win
  local command=("$BIN/ofaseg") device=()
  [ "$NGPU" != 0 ] || device=(--device cpu)
  (( NGPU <= 1 )) || command=("$BIN/torchrun" --nproc-per-node "$NGPU" -m ofaseg.cli)
  (( NGPU <= 1 )) || export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  local vocab=()
  [ -z "${BERT_VOCAB:-}" ] || vocab=(--override "bert_vocab=$BERT_VOCAB")
  run "${command[@]}" "$@" "${device[@]}" "${vocab[@]}" --out "$OUT" "${ARGUMENTS[@]}"
}

simseg_shards() {  # simseg_shards DATASET SPLIT [prepare flags]: sets DATA; makes the split from ROOT when it is not there
  DATA="${DATA:-$OUT/shards}"
  has_split "$DATA" "$2" && return
  [ "$DRY_RUN" = 1 ] || [ -n "$RAW" ] || { echo "$SCRIPT_NAME: no split $2 in $DATA; set DATA to shards that have it, or ROOT to the raw $1" >&2; exit 2; }
  run "$BIN/python" "$ROOT/data_prep/prepare.py" "$1" --root "${RAW:-ROOT}" --out "$DATA" --splits "$2" "${@:3}"
}

simseg_zero_shot() {  # simseg_zero_shot DATASET: mIoU of zero-shot segmentation on its val split with the published settings
  require CHECKPOINT "simseg.vit-s.pth or simseg.vit-b.pth (or a SimSeg checkpoint of ours)"
  simseg_shards "$1" val
  scores evaluate "$CHECKPOINT" "$DATA" --split val --batch-size 8 --num-workers 2 --override "zero_shot=$1"
}

simseg_retrieval() {  # simseg_retrieval DATASET SPLIT: recalls with the published sizes; DATA may be the official valid.parquet, too
  require CHECKPOINT "simseg.vit-b.pth (or a SimSeg checkpoint of ours)"
  [ -f "${DATA:-}" ] || simseg_shards "$1" "$2"
  scores retrieval "$CHECKPOINT" "$DATA" --split "$2" --resize 324 --crop 288 --batch-size 32 --num-workers 2
}

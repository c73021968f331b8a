# What the scripts of LLM supervision share. Sourced, never run. Inputs as in ../simseg/common.sh, and:
#   SUBCLASSES  label set, JSON {class: [finer names]} (default: the toolkit's own set of the dataset)
#   EXACT       1: names exactly as the file has them, repetitions too, as the published code reads its sets
#   TEMPLATES   sentences around names (default llm_voc13, as published; imagenet80 are those of SimSeg's own numbers)
source "$(dirname "${BASH_SOURCE[0]}")/../simseg/common.sh"

llm_supervision() {  # llm_supervision DATASET LABEL_SET TOP_M: mIoU of one dataset's val split, subclasses fused by the published rule
  require CHECKPOINT "simseg.vit-s.pth or simseg.vit-b.pth (or a CLIP, or a checkpoint of ours)"
  simseg_shards "$1" val
  local exact=()
  [ "${EXACT:-0}" = 0 ] || exact=(--override exact_subclasses=true)
  scores evaluate "$CHECKPOINT" "$DATA" --split val --batch-size 8 --num-workers 2 --override "zero_shot=$1" \
    --subclasses "${SUBCLASSES:-$ROOT/data_prep/subclasses/$2.json}" "${exact[@]}" \
    --override "templates=${TEMPLATES:-llm_voc13}" --override "top_m=${TOP_M:-$3}"
}

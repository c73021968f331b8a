#!/usr/bin/env bash
# FreeSeg on COCO-Stuff 164k val, 171 classes, 15 of them novel (published novel mIoU: 49.1).
#   CHECKPOINT=checkpoint_best.pt ROOT=COCO2017 [DATA=shards] run_scripts/freeseg/coco_test_semseg.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require CHECKPOINT "a checkpoint of coco_stage2.sh, or a published one"
freeseg_shards coco_zero_shot --splits val
scores evaluate "$CHECKPOINT" "$DATA" --split val --num-workers 2 --out "$OUT" "${ARGUMENTS[@]}"

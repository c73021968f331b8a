#!/usr/bin/env bash
# IFSeg on the 15 unseen classes of COCO-Stuff (paper table 1: mIoU 55.6 with feature propagation).
#   DATA=folder with unseen_val2017.tsv CHECKPOINT=ofa_base.pt BPE_DIR=... run_scripts/ifseg/coco_unseen.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require DATA "the folder that holds unseen_val2017.tsv (columns image, label map, id)"
ifseg_train "$DATA" --valid-subset unseen_val2017 --selected-cols 0,1,2 \
  --class-names "$ROOT/data_prep/class_names/coco_unseen15.txt"

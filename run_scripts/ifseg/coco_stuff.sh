#!/usr/bin/env bash
# IFSeg on COCO-Stuff, 171 classes (paper table 3: mIoU 16.9 with feature propagation).
#   DATA=folder with fineseg_refined_val2017.tsv CHECKPOINT=ofa_base.pt BPE_DIR=... run_scripts/ifseg/coco_stuff.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require DATA "the folder that holds fineseg_refined_val2017.tsv (columns image, label map, id)"
ifseg_train "$DATA" --valid-subset fineseg_refined_val2017 --selected-cols 0,1,2 \
  --class-names "$ROOT/data_prep/class_names/coco_stuff171.txt"

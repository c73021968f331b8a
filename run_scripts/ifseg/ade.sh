#!/usr/bin/env bash
# IFSeg on ADE20K, 150 classes (paper table 2: mIoU 16.8 with feature propagation).
#   DATA=folder with validation.tsv CHECKPOINT=ofa_base.pt BPE_DIR=... run_scripts/ifseg/ade.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require DATA "the folder that holds validation.tsv (columns image, label map, id)"
ifseg_train "$DATA" --valid-subset validation --selected-cols 0,1,2 \
  --class-names "$ROOT/data_prep/class_names/ade150.txt"

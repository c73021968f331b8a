#!/usr/bin/env bash
# Fusioner on a fold of COCO-20i: frozen CLIP ViT-L/14, trained on 60 classes, tested on the first 1,000 pairs of the other 20, as published
# (--test-subset hsnet1000 or all: other papers' tests). The published table was not found.
#   CLIP=ViT-L-14.pt ROOT=COCO2014 [PAIR_LISTS=splits] run_scripts/fusioner/coco.sh FOLD [--dry-run] [fairseq-train flags]
# Batch 32 and 510 epochs as published (EPOCHS); the mean over folds: tools/average_folds.py outputs/fusioner_coco-fold?/test/fewshot.json
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fusioner_fold coco20i coco first1000 32

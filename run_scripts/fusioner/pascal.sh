#!/usr/bin/env bash
# Fusioner on a fold of PASCAL-5i: frozen CLIP ViT-L/14, trained on 15 classes, tested on 5. The published table was not found.
#   CLIP=ViT-L-14.pt ROOT=VOCdevkit [PAIR_LISTS=splits] run_scripts/fusioner/pascal.sh FOLD [--dry-run] [fairseq-train flags]
# Batch 32 and 510 epochs as published (EPOCHS); the mean over folds: tools/average_folds.py outputs/fusioner_pascal-fold?/test/fewshot.json
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fusioner_fold pascal5i pascal all 32

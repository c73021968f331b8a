#!/usr/bin/env bash
# SimSeg on COCO val2017, 80 things and background, zero-shot (published mIoU: ViT-S 27.2, ViT-B 29.7; "COCO Stuff" in the paper).
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=coco [DATA=shards] run_scripts/simseg/coco_object.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
simseg_zero_shot coco_object

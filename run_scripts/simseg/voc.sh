#!/usr/bin/env bash
# SimSeg on PASCAL VOC 2012 val, 21 classes, zero-shot (published mIoU: ViT-S 56.6, ViT-B 57.4).
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=VOCdevkit [DATA=shards] run_scripts/simseg/voc.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
simseg_zero_shot pascal_voc

#!/usr/bin/env bash
# LLM supervision on PASCAL VOC 2012 val, 21 classes: SimSeg's maps from subclasses, no training. With the official label set and
# ViT-S, comments of the official code give 60.6 mIoU (61.7 with TOP_M=7, 58.3 without subclasses: simseg/voc.sh --override templates=llm_voc13).
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=VOCdevkit [SUBCLASSES=top5.json EXACT=1] [TOP_M=10] run_scripts/llm_supervision/voc.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
llm_supervision pascal_voc voc21 10

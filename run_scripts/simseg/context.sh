#!/usr/bin/env bash
# SimSeg on PASCAL Context val, 60 classes, zero-shot (published mIoU: ViT-S 25.8, ViT-B 26.2).
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=VOCdevkit [DATA=shards] run_scripts/simseg/context.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
simseg_zero_shot pascal_context

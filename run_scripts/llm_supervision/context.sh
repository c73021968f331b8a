#!/usr/bin/env bash
# LLM supervision on PASCAL Context val, 60 classes; the official README takes the threshold over all 60 scores. No published number was found.
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=VOCdevkit [SUBCLASSES=top5.json EXACT=1] [TOP_M=60] run_scripts/llm_supervision/context.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
llm_supervision pascal_context context60 60

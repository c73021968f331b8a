#!/usr/bin/env bash
# LLM supervision on COCO val2017, 80 things and background ("COCO-Stuff" in the paper). No published number was found.
#   CHECKPOINT=simseg.vit-s.pth BERT_VOCAB=vocab.txt ROOT=coco [SUBCLASSES=top5.json EXACT=1] [TOP_M=10] run_scripts/llm_supervision/coco_object.sh [--dry-run] [evaluate flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
llm_supervision coco_object coco_object81 10

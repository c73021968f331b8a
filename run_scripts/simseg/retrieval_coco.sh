#!/usr/bin/env bash
# SimSeg's image-text retrieval on the 5,000 test photos of COCO, Karpathy's split (published for ViT-B: RSUM 384.1).
#   CHECKPOINT=simseg.vit-b.pth BERT_VOCAB=vocab.txt ROOT=coco run_scripts/simseg/retrieval_coco.sh [--dry-run] [retrieval flags]
# DATA: shards with the split, or the official coco/valid.parquet. SPLIT: default test.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
simseg_retrieval coco_captions "${SPLIT:-test}"

#!/usr/bin/env bash
# SimSeg's image-text retrieval on the 1,000 test photos of Flickr30K (published for ViT-B: RSUM 507.3).
#   CHECKPOINT=simseg.vit-b.pth BERT_VOCAB=vocab.txt ROOT=flickr30k run_scripts/simseg/retrieval_flickr30k.sh [--dry-run] [retrieval flags]
# DATA: shards with the split, or the official f30k/valid.parquet. SPLIT: default test.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
simseg_retrieval flickr30k "${SPLIT:-test}"

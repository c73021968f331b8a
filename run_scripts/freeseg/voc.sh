#!/usr/bin/env bash
# FreeSeg on PASCAL VOC 2012, semantic, 15 of 20 classes trained (published mIoU: base 91.8, novel 82.6).
#   CLIP=ViT-B-16.pt BACKBONE=R-103.pkl DEPTH=r101c ROOT=VOCdevkit run_scripts/freeseg/voc.sh [1|2] [--dry-run] [fairseq-train flags]
# 1: prompts, 2: masks (with PROMPTS, a checkpoint of stage one); without a number both, one after the other.
# Published: 3,200 and 20,000 updates; masks: batch 16 and lr 1e-4 (r50), batch 32 and lr 2e-5 (r101c).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
freeseg_shards voc_zero_shot --splits train_aug,val
SIDES=320,384,448,512,576,640,704,768,832,896,960
learn_prompts() { prompt_stage 3200 128 0.001 --tasks semantic --train-subset train_aug; }
learn_masks() {
  if [ "$DEPTH" = r50 ]; then
    mask_stage 20000 16 1e-4 1e-4 512 --tasks semantic --short-sides "$SIDES" --ensemble-weight 0.7 --train-subset train_aug
  else
    mask_stage 20000 32 2e-5 2e-5 512 --tasks semantic --short-sides "$SIDES" --ensemble-weight 0.8 --train-subset train_aug
  fi
}
both_stages

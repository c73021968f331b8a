#!/usr/bin/env bash
# FreeSeg on ADE20K, 135 of 150 classes trained, all three tasks (published novel: mIoU 28.6, PQ 25.4, mask AP 15.4).
#   CLIP=ViT-B-16.pt BACKBONE=R-50.pkl ROOT=ADEChallengeData2016 run_scripts/freeseg/ade.sh [1|2] [--dry-run] [fairseq-train flags]
# 1: prompts, on semantic regions alone as published; 2: masks (with PROMPTS, a checkpoint of stage one); without a number both.
# Published: 16,000 and 60,000 updates of 32.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
freeseg_shards ade20k_panoptic
learn_prompts() { prompt_stage 16000 32 0.0005 --tasks semantic; }
SIDES=256,307,358,409,460,512,563,614,665,716,768,819,870,921,972,1024
learn_masks() { mask_stage 60000 32 1e-4 1e-4 512 --short-sides "$SIDES"; }
both_stages

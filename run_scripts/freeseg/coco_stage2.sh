#!/usr/bin/env bash
# FreeSeg, stage two on COCO: masks of all three tasks, 156 of 171 classes trained.
#   CLIP=ViT-B-16.pt PROMPTS=checkpoint_best.pt BACKBONE=R-103.pkl DEPTH=r101c ROOT=COCO2017 run_scripts/freeseg/coco_stage2.sh [--dry-run] [flags]
# Published: batch 32, 60,000 updates, lr 1e-4 (r50) or 1.5e-4 (r101c). BATCH: photos that a process holds at once.
# As the published code, which reads all classes with the task that came first: --first-task-text
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
freeseg_shards coco_zero_shot --with-segments
RATE=1e-4
[ "$DEPTH" = r50 ] || RATE=1.5e-4
mask_stage 60000 32 "$RATE" "$RATE" 640

#!/usr/bin/env bash
# FreeSeg, stage one on COCO: prompts are learned on regions of the 156 base classes, for all three tasks.
#   CLIP=ViT-B-16.pt ROOT=COCO2017 [DATA=shards] run_scripts/freeseg/coco_stage1.sh [--dry-run] [fairseq-train flags]
# ROOT: photos, stuffthingmaps and panoptic files, see docs/freeseg.md. Published: 32 regions, 16,000 updates.
# As the published code: --class-sorted --task-of-first --tall-crops --fill-with-mean
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
freeseg_shards coco_zero_shot --with-segments
prompt_stage 16000 64 0.001

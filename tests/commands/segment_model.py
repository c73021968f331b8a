"""A FreeSeg model of nano size and random weights as an exported file, beside the toy shards with segments it is scored on."""

import torch
from omegaconf import OmegaConf

from ofaseg.checkpoints import export_safetensors
from ofaseg.models.freeseg import architecture_config
from tests.toy_freeseg import make_task

LOOSE = ("--override", "score_threshold=0", "--override", "overlap_threshold=0.01", "--override", "suppression=off")
"""Options by which random masks become segments and objects."""


def export_nano(folder, shards, vocabulary, **task_options):
    """Writes nano.safetensors in `folder` and returns its path."""
    task = make_task(shards, vocabulary, without_regions=True, **task_options)
    torch.manual_seed(2)  # whose masks become several segments of a photo
    config = vars(architecture_config("freeseg_nano")) | {"_name": "freeseg"}
    model = task.build_model(OmegaConf.create(config))
    groups = {"model": config, "task": vars(task.cfg) | {"_name": "unified_segmentation"}}
    export_safetensors(model, groups, folder / "nano.safetensors", vocabulary)
    return folder / "nano.safetensors"

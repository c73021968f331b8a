"""Fusioner of a few thousand parameters over towers of random weights, as flags of fairseq-train and as a task in memory."""

import numpy as np
import torch

from ofaseg.vocabulary import ClassVocabulary
from user_tasks.fusion_segmentation import FusionSegmentationConfig, FusionSegmentationTask

MODEL_FLAGS = "--arch fusioner_nano --image-tower simseg_nano --random-towers --text-tower table --fusion-width 16 --fusion-heads 2".split()
MODEL_OPTIONS = dict(image_tower="simseg_nano", random_towers=True, text_tower="table", fusion_width=16, fusion_heads=2)


def write_table(folder, names, seed: int = 0) -> str:
    """Text vectors of names, drawn; returns the file."""
    vectors = np.random.default_rng(seed).normal(size=(len(names), 8)).astype(np.float32)
    np.savez(folder / "texts.npz", names=np.array(names), vectors=vectors)
    return str(folder / "texts.npz")


def make_task(folder, names, novel=(), data: str = "", **options) -> FusionSegmentationTask:
    """A task over a table of `names`; those of `novel` are marked."""
    vocabulary = ClassVocabulary(tuple(names), novel=tuple(name in novel for name in names) if novel else (), source="test")
    objects = [name for name in names if name != "background"]
    places = dict(data=data, text_tokenizer="table", text_embeddings=write_table(folder, objects), patch_image_size=32, seed=1)
    return FusionSegmentationTask(FusionSegmentationConfig(**(places | options)), vocabulary)


def make_model(task, **options):
    """The model of a task, its towers at random."""
    from ofaseg.checkpoints.fusioner import load_towers
    from ofaseg.models.fusioner import Fusioner, architecture_config

    config = architecture_config("fusioner_nano", **(MODEL_OPTIONS | {"text_embeddings": task.cfg.text_embeddings} | options))
    torch.manual_seed(0)
    model = Fusioner.build_model(config, task)
    load_towers(model)
    task.grid_stride = model.grid_stride
    return model.eval()

"""A model that tells the toy colours apart, behind the real task, so that commands run on real shards in milliseconds."""

import pytest
import torch
from torch import nn

import ofaseg.checkpoints
from ofaseg.structures import DenseOutput
from tests.toy import CLASS_COLOURS, NAMES, PROMPT_WORDS, write_toy_shards, write_words


class ColourModel(nn.Module):
    """Class logits = negative distance of a 4-pixel patch's mean colour to the class colours."""

    grid_stride = 4

    def __init__(self, num_classes: int):
        super().__init__()
        self.colours = nn.Parameter(torch.tensor(CLASS_COLOURS[:num_classes], dtype=torch.float32))

    @torch.no_grad()
    def predict(self, src_tokens, patch_images):
        patches = nn.functional.avg_pool2d(patch_images.float(), 4, ceil_mode=True, count_include_pad=False)
        distance = (patches[:, None] - self.colours[None, :, :, None, None]).square().mean(2)
        return DenseOutput(-distance / 1000, patches)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Folder of shards (split val, 7 photos of two sizes) with `ofaseg.checkpoints.load_model` giving the colour model."""
    return make_toy(tmp_path, monkeypatch)


def make_toy(folder, monkeypatch):
    from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig, Seq2SeqSegmentationTask

    root = folder / "shards"
    write_toy_shards(root, "val", 7, sizes=((32, 48), (40, 32)))
    words = write_words(folder / "words", [*PROMPT_WORDS, *NAMES, "cat", "dog"])

    def load_model(path, class_names=None, device="cpu", overrides=None):
        if not str(path).endswith(".pt"):
            raise ValueError(f"{path}: not a checkpoint")
        cfg = Seq2SeqSegmentationConfig(
            data=str(root), bpe_dir=words, patch_image_size=32, code_dict_size=0, num_bins=4, class_names=class_names or ""
        )
        cfg.seed = 1
        for key, value in (overrides or {}).items():
            setattr(cfg, key, value)
        task = Seq2SeqSegmentationTask.setup_task(cfg)
        return ColourModel(len(task.vocabulary)).to(device), task

    monkeypatch.setattr(ofaseg.checkpoints, "load_model", load_model, raising=False)
    return root

"""A tiny dual encoder of random weights as a checkpoint file, with its own word pieces."""

import torch

from ofaseg.models.simseg import SimSeg, architecture_config

WORDS = ("a", "photo", "of", "the", "red", "green", "blue", "car", "grass", "##s")


def write_vocab(path) -> str:
    """A vocab.txt of `WORDS`; returns its path."""
    path.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n", encoding="utf-8")
    return str(path)


def write_simseg(folder, seed: int = 0, image_size: int = 32) -> str:
    """`simseg_nano` for photos of `image_size`, as fairseq-train would leave it after captions alone; returns the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = SimSeg(architecture_config("simseg_nano", image_size=image_size), 5 + len(WORDS))
    task = {"_name": "image_text_pretraining", "data": "", "bert_vocab": write_vocab(folder / "vocab.txt"), "text_length": 12}
    task |= {"templates": "name", "patch_image_size": image_size}
    options = {"_name": "simseg_nano", "image_tower": "vit_nano_patch8", "text_tower": "bert_nano", "projection_dim": 128}
    torch.save({"cfg": {"model": options | {"image_size": image_size}, "task": task}, "model": model.state_dict()}, folder / "model.pt")
    return str(folder / "model.pt")

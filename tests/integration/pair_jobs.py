"""Jobs for forked children (see forked.py beside this file): contrastive training steps on one process or several.

Every job has the same pairs and start weights for any number of processes; each takes its share of the pairs. Gradients are those
of the sum of all losses over the number of pairs, as fairseq's trainer makes them.
"""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from fairseq.distributed import ModuleProxyWrapper
from torch.nn.parallel import DistributedDataParallel

from criterions.image_text_contrastive import ImageTextContrastive
from ofaseg import distributed
from ofaseg.models.simseg import SimSeg, architecture_config
from ofaseg.wordpiece import SPECIAL_TOKENS
from tests.models.one_layer import one_layer
from user_tasks.image_text_pretraining import ImageTextPretrainingConfig, ImageTextPretrainingTask

WORDS = (*SPECIAL_TOKENS, *"a red green blue ball on grass with sky the photo of".split())
LENGTH = 7


@contextlib.contextmanager
def processes():
    """Joins the other children, when there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gathered(rows: int) -> list:
    """[gathered rows, gradient of this rank's rows of a sum in which rank r counts r + 1 times], of rank 0."""
    with processes():
        rank, world = distributed.rank(), distributed.world_size()
        own = (torch.arange(rows * 2.0).view(rows, 2) + 100 * rank).requires_grad_()
        everything = distributed.gather_rows(own)
        weights = torch.arange(1.0, 1 + everything.numel()).view_as(everything)
        (everything * weights * (rank + 1)).sum().backward()
        result = torch.zeros(world, *own.shape)
        result[rank] = own.grad
        dist.all_reduce(result)
        return [everything.tolist(), result.tolist()]


def make_task(folder, sub_batch: int = 0) -> ImageTextPretrainingTask:
    """The task with a vocabulary of a few words and no data."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    cfg = ImageTextPretrainingConfig(data="", bert_vocab=str(path), sub_batch_size=sub_batch, text_length=LENGTH)
    cfg.seed = 1
    return ImageTextPretrainingTask(cfg)


def make_model(dropout: float) -> SimSeg:
    torch.manual_seed(3)
    with one_layer():
        return SimSeg(architecture_config("simseg_nano", image_size=16, projection_dim=24, dropout=dropout, temperature=0.1), len(WORDS))


def make_batch(pairs: int, first: int = 0, count: int = 0) -> dict:
    """`count` (0: all) of `pairs` pairs, from `first` on."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (pairs, 3, 16, 16), dtype=torch.uint8, generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (pairs, 1), generator=generator)
    mask = (torch.arange(LENGTH)[None] < lengths).long()
    ids = torch.randint(5, len(WORDS), (pairs, LENGTH), generator=generator) * mask
    part = slice(first, first + (count or pairs))
    net_input = {"image": image[part], "input_ids": ids[part], "attention_mask": mask[part]}
    return {"id": torch.arange(pairs)[part], "nsentences": len(image[part]), "net_input": net_input}


def step(folder, pairs: int, sub_batch: int, dropout: float = 0.0) -> dict:
    """{"loss": mean loss, "hits": ..., parameter name: its gradient} after one training step."""
    rank, world = distributed.rank(), distributed.world_size()
    task, model = make_task(folder, sub_batch), make_model(dropout)
    wrapped = ModuleProxyWrapper(DistributedDataParallel(model)) if world > 1 else model
    criterion = ImageTextContrastive(task, label_smoothing=0.0, local_negatives=False)
    share = pairs // world
    batch = make_batch(pairs, rank * share, share)
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    loss, size, log = task.train_step(batch, wrapped, criterion, optimizer, update_num=2)
    assert size == log["sample_size"] == share and log["loss"] == loss
    sums = torch.cat([loss.detach().double()[None], log["_hits"], log["_temperature"][None]])
    if world > 1:
        dist.all_reduce(sums)
    result = {"loss": sums[0] / pairs, "hits": sums[1:3], "_temperature": sums[3] / pairs}
    # DDP has the mean over processes
    return result | {name: parameter.grad * world / pairs for name, parameter in model.named_parameters()}


def store_step(folder: str, pairs: int, sub_batch: int) -> None:
    """`step`, written by rank 0 to <folder>/step.pt."""
    with processes():
        result = step(Path(folder), pairs, sub_batch)
        if distributed.rank() == 0:
            torch.save(result, Path(folder) / "step.pt")

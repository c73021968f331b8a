"""From the prompts of class names to one vector per class: the only way there, for every method with a text tower."""

from typing import Callable, Sequence

import torch
from torch import Tensor

CHUNK_TOKENS = 8192
"""Tokens, padding included, that are encoded at once."""


def class_embeddings(encode: Callable[[Tensor, Tensor], Tensor], prompts: Sequence[Sequence[Sequence[int]]], pad: int, device) -> Tensor:
    """Unit mean over the prompts of each class (CLIP's prompt ensembling; SimSeg's text classifier).

    Prompts are encoded sorted by length, each chunk only as long as its longest prompt: padding is hidden, so nothing changes.

    Args:
        encode: token ids (n, L), mask (n, L) -> (n, D) unit vectors.
        prompts: for each of K classes the token ids of its prompts, at least one.
        pad: id of padding.

    Returns: (K, D) float32 unit vectors.

    Raises:
        ValueError: a class without a prompt.
    """
    empty = [k for k, texts in enumerate(prompts) if not texts]
    if empty:
        raise ValueError(f"class {empty[0]} has no prompt; give at least one template")
    texts = sorted(((list(ids), k) for k, of_class in enumerate(prompts) for ids in of_class), key=lambda text: len(text[0]))
    sums, start = None, 0
    while start < len(texts):
        end = _chunk_end(texts, start)
        ids, mask = padded([ids for ids, _ in texts[start:end]], pad)
        vectors = encode(ids.to(device), mask.to(device)).float()
        owners = torch.tensor([k for _, k in texts[start:end]], device=device)
        sums = vectors.new_zeros(len(prompts), vectors.shape[1]) if sums is None else sums
        sums = sums.index_add(0, owners, vectors)
        start = end
    counts = torch.tensor([len(of_class) for of_class in prompts], device=device, dtype=sums.dtype)
    means = sums / counts[:, None]
    return means / means.norm(dim=1, keepdim=True)


def _chunk_end(texts: list, start: int) -> int:
    """The end of the chunk that begins at `start`: as many texts as fit `CHUNK_TOKENS` when padded to the longest, at least one."""
    end = start + 1
    while end < len(texts) and len(texts[end][0]) * (end + 1 - start) <= CHUNK_TOKENS:
        end += 1
    return end


def padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (n, L) int64 right-padded to the longest text, and the mask (n, L) int64 of what is no padding."""
    length = max(len(ids) for ids in texts)
    ids = torch.tensor([[*ids, *[pad] * (length - len(ids))] for ids in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return ids, (torch.arange(length)[None] < lengths[:, None]).long()

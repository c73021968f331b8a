"""Many texts through a text tower with little padding: sorted by length, each part only as long as its longest text."""

from typing import Callable

import torch
from torch import Tensor

from ofaseg.models.text_encoders.class_embeddings import CHUNK_TOKENS


def encode_by_length(
    encode: Callable[[Tensor, Tensor], Tensor], input_ids: Tensor, attention_mask: Tensor, device, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """(T, D) vectors of T texts in their own order; the same as encoding them as they are, for padding is hidden from the words.

    Args:
        encode: token ids (n, L), mask (n, L) on `device` -> (n, D).
        input_ids, attention_mask: (T, L) on the CPU, T at least 1; the mask is 1 for tokens, which stand first, and 0 for padding.
        chunk_tokens: tokens, padding included, that are encoded at once.
    """
    lengths, order = attention_mask.sum(1).sort(stable=True)
    parts, start = [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and int(lengths[end]) * (end + 1 - start) <= chunk_tokens:
            end += 1
        rows, longest = order[start:end], max(1, int(lengths[end - 1]))
        parts.append(encode(input_ids[rows, :longest].to(device), attention_mask[rows, :longest].to(device)))
        start = end
    return torch.cat(parts)[order.argsort().to(parts[0].device)]

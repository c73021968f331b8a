"""Image-text retrieval: recall at 1, 5 and 10 in both directions, without sorting and with bounded memory.

The rank of a query is the number of gallery items that a stable sort by descending score puts before its first match: items of a
higher score, and items of an equal score that stand earlier in the gallery.
"""

from collections.abc import Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor

from ofaseg.evaluation.evaluator import gather_parts, gather_texts

RECALLS = (1, 5, 10)
SCORE_NAMES = (*(f"{direction}-R@{k}" for direction in ("I2T", "T2I") for k in RECALLS), "RSUM")
"""What `retrieval_scores` returns."""
Ids = Union[Tensor, Sequence[int], Sequence[str]]


def retrieval_ranks(query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, chunk: int = 512) -> Tensor:
    """(Q,) int64: how many items stand before the first match of each query, from 0; -1 for a query without a match.

    Args:
        query, gallery: (Q, D) and (G, D) embeddings; the score is their dot product.
        query_ids, gallery_ids: (Q,) and (G,) integers; an item matches a query of the same id.
        chunk: queries at a time; scores take chunk * G floats.

    Raises:
        ValueError: an embedding is not finite (it would look like a perfect match), or sizes differ.
    """
    if len(query) != len(query_ids) or len(gallery) != len(gallery_ids):
        problem = f"{len(query)} queries with {len(query_ids)} ids, {len(gallery)} items with {len(gallery_ids)}"
        raise ValueError(f"{problem}: each embedding needs its id")
    if not (torch.isfinite(query).all() and torch.isfinite(gallery).all()):
        raise ValueError("an embedding is not finite, so it has no rank; check the model and its precision")
    if not len(query) or not len(gallery):
        return torch.full((len(query),), -1, dtype=torch.long, device=query.device)
    # items in the order of their ids: those of a query are the items starts .. starts + counts of `by_id`
    sorted_ids, by_id = torch.sort(gallery_ids, stable=True)
    starts = torch.searchsorted(sorted_ids, query_ids)
    counts = torch.searchsorted(sorted_ids, query_ids, right=True) - starts
    places = starts[:, None] + torch.arange(int(counts.max()), device=query.device)
    parts = []
    for start in range(0, len(query), chunk):
        stop = start + chunk
        matches = by_id[places[start:stop].clamp(max=len(gallery) - 1)]
        absent = torch.arange(matches.shape[1], device=query.device) >= counts[start:stop, None]
        parts.append(_ranks_of_chunk(query[start:stop] @ gallery.T, matches, absent))
    return torch.cat(parts)


def _ranks_of_chunk(scores: Tensor, matches: Tensor, absent: Tensor) -> Tensor:
    """`retrieval_ranks` of (q, G) scores; `matches` (q, P) are the matching items of each query, ascending, but those that are `absent`."""
    found = scores.gather(1, matches).masked_fill(absent, float("-inf"))
    if not found.shape[1]:
        return torch.full((len(scores),), -1, dtype=torch.long, device=scores.device)
    best = found.amax(1, keepdim=True)
    ranks = (scores > best).sum(1, dtype=torch.int32).long()  # sums of 32 bits are twice as fast on the CPU
    tied = (scores == best).sum(1, dtype=torch.int32) > 1
    if tied.any():
        equal_matches = found[tied] == best[tied]
        first = matches[tied].masked_fill(~equal_matches, scores.shape[1]).amin(1, keepdim=True)
        earlier = torch.arange(scores.shape[1], device=scores.device) < first
        ranks[tied] += ((scores[tied] == best[tied]) & earlier).sum(1)
    return ranks.masked_fill(absent.all(1), -1)


def retrieval_scores(
    image_embeddings: Tensor, image_ids: Ids, text_embeddings: Tensor, text_image_ids: Ids, chunk: int = 512
) -> dict[str, float]:
    """Recall in both directions. Images without captions and captions without image are no queries, but stay in the gallery.

    Args:
        image_embeddings, text_embeddings: (N, D) and (T, D), of one device.
        image_ids: of each image, numbers or texts. Of images of one id the last counts; they are brought into the order of their ids.
        text_image_ids: of each text, the id of its image. Rows of a negative id are left out on both sides.

    Returns:
        I2T-R@1, -R@5, -R@10 and T2I-R@1 ... as shares 0..1 of the queries that have a match; RSUM, their sum (0..6).

    Raises:
        ValueError: no image has a text; or as `retrieval_ranks`.
    """
    images, texts = _as_numbers(image_ids, text_image_ids, image_embeddings.device)
    if len(images) != len(image_embeddings):
        raise ValueError(f"{len(image_embeddings)} images with {len(images)} ids: each embedding needs its id")
    image_embeddings, images = last_of_each(image_embeddings, images)
    text_embeddings, texts = text_embeddings[texts >= 0], texts[texts >= 0]
    directions = {
        "I2T": retrieval_ranks(image_embeddings, text_embeddings, images, texts, chunk),
        "T2I": retrieval_ranks(text_embeddings, image_embeddings, texts, images, chunk),
    }
    scores: dict[str, float] = {}
    for direction, ranks in directions.items():
        ranks = ranks[ranks >= 0]
        if not len(ranks):
            raise ValueError(f"no image has a caption of its id ({len(images)} images, {len(texts)} captions); compare the ids of both")
        scores |= {f"{direction}-R@{k}": float((ranks < k).double().mean()) for k in RECALLS}
    return scores | {"RSUM": sum(scores.values())}


def last_of_each(embeddings: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings, ids) in ascending order of the ids, the last row of each id; negative ids are left out."""
    numbers = ids.cpu().numpy()
    unique, from_behind = np.unique(numbers[::-1], return_index=True)
    rows = len(numbers) - 1 - from_behind[unique >= 0]
    kept = torch.from_numpy(rows).to(embeddings.device)
    return embeddings[kept], ids[kept.to(ids.device)]


def _as_numbers(image_ids: Ids, text_image_ids: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both lists as integers on `device`; texts are numbered in the order of the alphabet."""
    if not any(isinstance(value, str) for ids in (image_ids, text_image_ids) if not isinstance(ids, Tensor) for value in ids):
        return tuple(torch.as_tensor(ids, dtype=torch.long, device=device) for ids in (image_ids, text_image_ids))
    both = [str(value) for ids in (image_ids, text_image_ids) for value in ids]
    numbers = torch.from_numpy(np.unique(both, return_inverse=True)[1]).to(device)
    return numbers[: len(image_ids)], numbers[len(image_ids) :]


def gather_embeddings(embeddings: Tensor, image_ids: Sequence[Union[int, str]], order: Tensor) -> tuple[Tensor, list, Tensor]:
    """The parts of all ranks as one, the same on every rank and for any number of ranks. All ranks call it together.

    Args:
        embeddings: (n, D) of this rank, n may differ between ranks and be 0.
        image_ids: the n ids.
        order: (n,) int64, the place of each row in the whole set; a row that several ranks hold is kept once.

    Returns: (embeddings (N, D), N ids, order (N,) ascending).
    """
    embeddings, order = gather_parts(embeddings), gather_parts(order.to(embeddings.device))
    ids = gather_texts(list(image_ids))  # sent as JSON, which keeps numbers
    places, first = np.unique(order.cpu().numpy(), return_index=True)
    kept = torch.from_numpy(first).to(embeddings.device)
    return embeddings[kept], [ids[k] for k in first.tolist()], torch.from_numpy(places).to(embeddings.device)

"""Retrieval against a naive sort, ties, ids, and several ranks against one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ofaseg.evaluation.evaluator import rank_indices
from ofaseg.evaluation.retrieval import gather_embeddings, last_of_each, retrieval_ranks, retrieval_scores


def naive_ranks(scores, query_ids, gallery_ids):
    """Rank of the first match in a stable sort by descending score, -1 without one."""
    ranks = []
    for row, query_id in zip(scores, query_ids):
        order = np.argsort(-row, kind="stable")
        found = np.flatnonzero(gallery_ids[order] == query_id)
        ranks.append(int(found[0]) if len(found) else -1)
    return ranks


def embeddings(count, width, seed, levels=0):
    """Unit-less random vectors; with `levels` of whole numbers, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(-levels, levels + 1, (count, width), generator=generator).float()
    return torch.randn(count, width, generator=generator)


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_ranks_are_those_of_a_stable_sort(levels, chunk):
    query, gallery = embeddings(40, 3, 0, levels), embeddings(60, 3, 1, levels)
    rng = np.random.default_rng(2)
    query_ids, gallery_ids = rng.integers(0, 25, 40), rng.integers(0, 20, 60)
    scores = (query @ gallery.T).numpy()
    expected = naive_ranks(scores, query_ids, gallery_ids)
    got = retrieval_ranks(query, gallery, torch.from_numpy(query_ids), torch.from_numpy(gallery_ids), chunk)
    assert got.tolist() == expected and -1 in expected
    if levels:  # the case is one where the tie rule matters: neither the best nor the worst place among equals
        strict = [(row > row[gallery_ids == k].max()).sum() if (gallery_ids == k).any() else -1 for row, k in zip(scores, query_ids)]
        assert got.tolist() != [int(rank) for rank in strict]


def test_ties_by_hand():
    query, gallery = torch.tensor([[1.0]]), torch.tensor([[2.0], [1.0], [1.0], [1.0], [3.0]])
    for match, rank in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0)):
        ids = torch.tensor([9] * 5)
        ids[match] = 5
        assert retrieval_ranks(query, gallery, torch.tensor([5]), ids).tolist() == [rank]
    assert retrieval_ranks(query, gallery, torch.tensor([5]), torch.tensor([9, 9, 5, 5, 9])).tolist() == [3]  # the first of two matches


def naive_scores(images, image_ids, texts, text_ids):
    """The rules one after another: drop, deduplicate, sort each query's scores, look at the first k."""
    last = {image_id: k for k, image_id in enumerate(image_ids) if image_id >= 0}
    image_ids = sorted(last)
    images = images[[last[image_id] for image_id in image_ids]]
    kept = [k for k, image_id in enumerate(text_ids) if image_id >= 0]
    texts, text_ids = texts[kept], [text_ids[k] for k in kept]
    similarity = images @ texts.T
    scores = {}
    for name, matrix, queries, items in (("I2T", similarity, image_ids, text_ids), ("T2I", similarity.T, text_ids, image_ids)):
        for k in (1, 5, 10):
            hits = []
            for row, query in zip(matrix, queries):
                if query in items:
                    top = sorted(range(len(items)), key=lambda j, row=row: (-row[j], j))[:k]
                    hits.append(any(items[j] == query for j in top))
            scores[f"{name}-R@{k}"] = sum(hits) / len(hits)
    return scores | {"RSUM": sum(scores.values())}


def example(seed=0):
    """Images with repeats and unusable ids, captions with some that have no image; captions resemble their image."""
    rng = np.random.default_rng(seed)
    image_ids = [3, 7, -1, 0, 12, 7, 40, 3, *range(100, 130)]
    text_ids = [*rng.permutation([k for k in image_ids if k not in (40,)] * 3).tolist(), 999, -5]
    base = {k: rng.normal(size=8) for k in {*image_ids, *text_ids}}
    images = np.stack([base[k] + 0.6 * rng.normal(size=8) for k in image_ids])
    texts = np.stack([base[k] + 0.9 * rng.normal(size=8) for k in text_ids])
    return images.astype(np.float32), image_ids, texts.astype(np.float32), text_ids


def test_scores_equal_a_naive_sort():
    images, image_ids, texts, text_ids = example()
    expected = naive_scores(images, image_ids, texts, text_ids)
    got = retrieval_scores(torch.from_numpy(images), image_ids, torch.from_numpy(texts), torch.tensor(text_ids), chunk=5)
    assert list(got) == ["I2T-R@1", "I2T-R@5", "I2T-R@10", "T2I-R@1", "T2I-R@5", "T2I-R@10", "RSUM"]
    assert got == pytest.approx(expected)
    assert 0.2 < got["T2I-R@1"] < got["T2I-R@5"] < 1 and got["I2T-R@1"] != got["T2I-R@1"]
    swapped = retrieval_scores(torch.from_numpy(texts), text_ids, torch.from_numpy(images), image_ids)
    assert swapped["RSUM"] != pytest.approx(expected["RSUM"])


def test_text_ids_count_like_numbers():
    images, image_ids, texts, text_ids = example(1)
    rows, captions = [k for k, i in enumerate(image_ids) if i >= 0], [k for k, i in enumerate(text_ids) if i >= 0]
    images, texts = torch.from_numpy(images[rows]), torch.from_numpy(texts[captions])
    numbers = retrieval_scores(images, [image_ids[k] for k in rows], texts, [text_ids[k] for k in captions])
    words = retrieval_scores(images, [f"{image_ids[k]:012d}" for k in rows], texts, [f"{text_ids[k]:012d}" for k in captions])
    assert words == numbers


def test_of_equal_ids_the_last_counts():
    rows, ids = last_of_each(torch.arange(6.0)[:, None], torch.tensor([5, 2, -1, 5, 2, 9]))
    assert rows.flatten().tolist() == [4.0, 3.0, 5.0] and ids.tolist() == [2, 5, 9]


def test_what_cannot_be_scored():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="no image has a caption of its id"):
        retrieval_scores(ones, [1, 2], ones, [3, 4])
    with pytest.raises(ValueError, match="not finite"):
        retrieval_scores(ones * float("nan"), [1, 2], ones, [1, 2])
    with pytest.raises(ValueError, match="2 images with 3 ids"):
        retrieval_scores(ones, [1, 2, 3], ones, [1, 2])
    assert retrieval_ranks(ones[:0], ones, torch.tensor([], dtype=torch.long), torch.tensor([1, 2])).tolist() == []
    assert retrieval_ranks(ones, ones[:0], torch.tensor([1, 2]), torch.tensor([], dtype=torch.long)).tolist() == [-1, -1]


def rank_scores(rank, world):
    """Scores when images and captions are shared between ranks; the last row is held twice, as a padding sampler would do."""
    images, image_ids, texts, text_ids = example()
    parts = []
    for values, ids in ((images, image_ids), (texts, text_ids)):
        rows = rank_indices(len(ids), rank, world)
        rows += [len(ids) - 1] if world > 1 and rank == 0 else []
        part = gather_embeddings(torch.from_numpy(values[rows]), [ids[k] for k in rows], torch.tensor(rows, dtype=torch.long))
        assert part[2].tolist() == list(range(len(ids))) and part[1] == ids
        parts += part[:2]
    return retrieval_scores(*parts)


def _worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(rank_scores(rank, world), f"{folder}/{rank}.pt")
        rows = torch.ones(2 * rank, 3, dtype=torch.long)  # rank 0 holds none
        assert gather_embeddings(rows, ["a", "b"][: 2 * rank], torch.arange(2 * rank))[1] == ["a", "b"]
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    mp.start_processes(_worker, args=(2, str(tmp_path)), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0] == results[1] == rank_scores(0, 1)
    assert results[0] == pytest.approx(naive_scores(*example()))

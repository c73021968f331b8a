"""Evaluator sums and the loop: batch sizes, bad rows, one rank against several."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ofaseg.evaluation.evaluator import SemanticEvaluator, evaluate_batches, gather_texts, rank_indices
from ofaseg.evaluation.semantic import confusion_matrix, semantic_scores
from ofaseg.structures import SegmentationOutput
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

VOCABULARY = ClassVocabulary(names=("a", "b", "c"))


def photo(index):
    """Prediction and label map of photo `index`, whose size depends on it."""
    generator = torch.Generator().manual_seed(index)
    size = (4 + index % 3, 6)
    label = torch.randint(-1, 3, size, generator=generator)
    return torch.randint(0, 3, size, generator=generator), label


def batches_of(indices, batch_size):
    for start in range(0, len(indices), batch_size):
        chunk = indices[start : start + batch_size]
        yield {"nsentences": len(chunk), "id": torch.tensor(chunk), "native_label_maps": [photo(i)[1] for i in chunk]}


def predict(batch):
    return [SegmentationOutput(photo(int(i))[0]) for i in batch["id"]]


def run(indices, batch_size=2):
    return evaluate_batches(batches_of(indices, batch_size), predict, SemanticEvaluator(VOCABULARY))


def expected_scores(count):
    return semantic_scores(sum(confusion_matrix(*photo(i), 3) for i in range(count)), VOCABULARY)


def test_any_batch_size_gives_the_scores_of_the_whole_set():
    expected = expected_scores(7)
    labels = torch.cat([photo(i)[1].flatten() for i in range(7)])
    shares = torch.bincount(labels[labels != IGNORE_INDEX], minlength=3) / (labels != IGNORE_INDEX).sum()
    for batch_size in (1, 2, 7):
        result = run(range(7), batch_size)
        assert result.images == result.scores["images"] == 7 and not result.bad_rows
        assert result.scores["IoU_per_class"] == expected["IoU_per_class"]
        constant = result.scores["constant"]
        assert constant["mIoU"] == pytest.approx(shares.max().item() / 3) and constant["constant_class"] == int(shares.argmax())


def test_scores_of_single_photos_are_those_of_their_own_matrix():
    evaluator = SemanticEvaluator(VOCABULARY)
    evaluate_batches(batches_of([4, 2, 0], 2), predict, evaluator)
    expected = [semantic_scores(confusion_matrix(*photo(i), 3))["mIoU"] for i in (4, 2, 0)]
    assert evaluator.image_scores() == pytest.approx(expected) and len(set(expected)) == 3
    unlabelled = torch.full((2, 2), IGNORE_INDEX)
    evaluator.update([SegmentationOutput(torch.zeros(2, 2, dtype=torch.long))], {"native_label_maps": [unlabelled]})
    assert math.isnan(evaluator.image_scores()[-1])


def test_reset_forgets():
    evaluator = SemanticEvaluator(VOCABULARY)
    first = evaluate_batches(batches_of(range(3), 1), predict, evaluator).scores
    assert len(evaluator.image_scores()) == 3
    again = evaluate_batches(batches_of(range(3), 1), predict, evaluator).scores
    assert first == again


def test_bad_rows_are_counted_and_cost_nothing_else():
    empty = {"nsentences": 0, "bad_rows": ["val.tsv, row 9: broken"]}
    partly = next(batches_of([2], 1)) | {"bad_rows": ["val.tsv, row 10: broken"]}
    seen = []
    result = evaluate_batches(
        [*batches_of([0, 1], 2), empty, partly], predict, SemanticEvaluator(VOCABULARY), lambda batch, outputs: seen.append(len(outputs))
    )
    assert result.bad_rows == ["val.tsv, row 9: broken", "val.tsv, row 10: broken"]
    assert result.images == 3 and seen == [2, 0, 1]
    assert result.scores["mIoU"] == expected_scores(3)["mIoU"]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="first problem: row 0 broken"):
        evaluate_batches([{"nsentences": 0, "bad_rows": ["row 0 broken"]}], predict, SemanticEvaluator(VOCABULARY))
    with pytest.raises(ValueError, match="split is empty"):
        evaluate_batches([], predict, SemanticEvaluator(VOCABULARY))
    with pytest.raises(ValueError, match="carry no label maps"):
        evaluate_batches([{"nsentences": 1, "id": torch.tensor([0])}], predict, SemanticEvaluator(VOCABULARY))


def test_a_prediction_outside_the_vocabulary_is_found_at_the_end():
    evaluator = SemanticEvaluator(VOCABULARY)
    evaluator.update([SegmentationOutput(torch.tensor([[3]]))], {"native_label_maps": [torch.tensor([[0]])]})
    with pytest.raises(ValueError, match="outside 0..2"):
        evaluator.compute()
    evaluator.reset()
    evaluator.update([SegmentationOutput(torch.tensor([[3]]))], {"native_label_maps": [torch.tensor([[IGNORE_INDEX]])]})
    assert evaluator.compute()["pixels"] == 0


@pytest.mark.parametrize("num_rows, world", [(0, 2), (1, 2), (7, 3), (8, 4)])
def test_ranks_share_the_rows_exactly(num_rows, world):
    parts = [rank_indices(num_rows, rank, world) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(num_rows))
    assert rank_indices(num_rows) == list(range(num_rows))


def _worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        indices = rank_indices(5)
        bad = {"nsentences": 0, "bad_rows": [f"rank {rank}: ü"] * rank}
        result = evaluate_batches([*batches_of(indices, 2), bad], predict, SemanticEvaluator(VOCABULARY))
        assert gather_texts([]) == []
        torch.save({"scores": str(result.scores), "images": result.images, "bad": result.bad_rows}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    mp.start_processes(_worker, args=(2, str(tmp_path)), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert results[0]["scores"] == str(run(range(5)).scores)
    assert results[0]["images"] == 5 and results[0]["bad"] == ["rank 1: ü"]

"""PQ against a loop over all pairs of segments, against values worked out by hand, and over ranks."""

import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from ofaseg.evaluation.evaluator import evaluate_batches, rank_indices
from ofaseg.evaluation.panoptic import PanopticError, PanopticEvaluator, _sums_by_key, overlaps, panoptic_counts, panoptic_scores
from ofaseg.structures import PanopticSegmentation, SegmentationOutput
from ofaseg.vocabulary import ClassVocabulary
from tests.evaluation.naive_panoptic import naive_counts

K = 6
VOCABULARY = ClassVocabulary(
    names=tuple("abcdef"), thing=(True, True, True, False, False, False), novel=(False, True, False, False, False, True)
)


def scene(seed, height=24, width=31):
    """Truth (ids spread over 24 bits, void, crowds) and a prediction that is the truth moved, split, relabelled and holed."""
    g = np.random.default_rng(seed)
    truth = np.zeros((height, width), dtype=np.int32)
    ids = g.choice(2**24 - 1, 9, replace=False) + 1
    for i in ids:
        y, x = g.integers(0, height - 5), g.integers(0, width - 5)
        truth[y : y + g.integers(3, 12), x : x + g.integers(3, 14)] = i
    crowd_classes = set()
    true_segments = []
    for i in ids[np.isin(ids, truth)]:
        class_id = int(g.integers(K))
        crowd = bool(g.random() < 0.3) and class_id not in crowd_classes
        crowd_classes |= {class_id} if crowd else set()
        true_segments.append({"id": int(i), "class_id": class_id, "is_crowd": crowd, "area": int((truth == i).sum())})
    number = {int(i): k + 1 for k, i in enumerate(np.unique(truth))}
    prediction = np.vectorize(number.get)(np.roll(truth, int(g.integers(0, 2)), 1)).astype(np.int32)
    prediction[g.random(truth.shape) < 0.05] = 0
    classes = {number[s["id"]]: s["class_id"] for s in true_segments}
    segments = [
        {"id": int(i), "class_id": classes.get(int(i), 3) if g.random() < 0.8 else int(g.integers(K))} for i in np.unique(prediction) if i
    ]
    g.shuffle(segments)
    return truth, true_segments, prediction, segments


def test_against_the_loop_over_pairs():
    total = np.zeros((K, 4))
    for seed in range(60):
        expected = naive_counts(*scene(seed), K)
        np.testing.assert_allclose(panoptic_counts(*scene(seed), K), expected, rtol=1e-12)
        total += expected
    assert (total[:, 1:] > 5).all()  # every class has matches, wrong and missed segments


def test_against_panopticapi(tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    lists = [[], []]
    for seed in range(5):
        truth, true_segments, prediction, segments = scene(seed)
        for kind, (ids, entries) in enumerate(((truth, true_segments), (prediction, segments))):
            (tmp_path / str(kind)).mkdir(exist_ok=True)
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / str(kind) / f"{seed}.png")
            info = [
                {"id": s["id"], "category_id": s["class_id"], "iscrowd": int(s.get("is_crowd", False)), "area": s.get("area", 0)}
                for s in entries
            ]
            lists[kind].append({"image_id": seed, "file_name": f"{seed}.png", "segments_info": info})
    categories = {k: {"id": k, "isthing": int(VOCABULARY.thing[k])} for k in range(K)}
    stat = evaluation.pq_compute_single_core(0, list(zip(*lists)), str(tmp_path / "0"), str(tmp_path / "1"), categories)
    counts = sum(panoptic_counts(*scene(seed), K) for seed in range(5))
    for k in range(K):
        np.testing.assert_allclose(counts[k], [stat[k].iou, stat[k].tp, stat[k].fp, stat[k].fn])


def map_of(rows):
    return np.array(rows, dtype=np.int32)


def test_by_hand():
    truth = map_of([[1, 1, 1, 1], [2, 2, 2, 0], [3, 3, 3, 3]])
    true_segments = [{"id": 1, "class_id": 0}, {"id": 2, "class_id": 0}, {"id": 3, "class_id": 3, "is_crowd": True}]
    prediction = map_of([[5, 5, 5, 6], [7, 7, 7, 7], [8, 8, 8, 9]])
    classes = {5: 0, 6: 0, 7: 0, 8: 3, 9: 0}
    counts = panoptic_counts(truth, true_segments, prediction, [{"id": i, "class_id": k} for i, k in classes.items()], K)
    # 5 matches 1 with 3/4; 7 matches 2 with 3/3, for the pixel without truth is no part of the union; 8 lies on the crowd of its
    # class and is excused, 9 on the crowd of another class and is not; 6 is wrong
    assert counts[0].tolist() == [1.75, 2, 2, 0] and counts[3].tolist() == [0, 0, 0, 0] and not counts[[1, 2, 4, 5]].any()
    scores = panoptic_scores(counts, VOCABULARY)
    assert scores["PQ"] == 1.75 / 3 and scores["SQ"] == 0.875 and scores["RQ"] == 2 / 3 and scores["classes_scored"] == 1


def test_the_area_of_the_list_counts():
    truth, prediction = map_of([[1, 1, 1, 1]]), map_of([[1, 1, 1, 0]])
    one = [{"id": 1, "class_id": 0}]
    assert panoptic_counts(truth, one, prediction, one, K)[0, 0] == 0.75
    assert panoptic_counts(truth, [one[0] | {"area": 5}], prediction, one, K)[0, 0] == 0.6
    assert panoptic_counts(truth, [one[0] | {"area": 6}], prediction, one, K)[0].tolist() == [0, 0, 1, 1]  # one half is no match


def test_means():
    counts = np.zeros((K, 4))
    counts[0], counts[1], counts[3], counts[4] = [3.2, 4, 1, 1], [0.6, 1, 0, 1], [0.9, 1, 0, 0], [0, 0, 2, 0]
    scores = panoptic_scores(counts, VOCABULARY)
    pq = [3.2 / 5, 0.6 / 1.5, math.nan, 0.9, 0.0, math.nan]
    assert scores["PQ_per_class"] == pytest.approx(pq, nan_ok=True)
    assert scores["SQ_per_class"] == pytest.approx([0.8, 0.6, math.nan, 0.9, 0.0, math.nan], nan_ok=True)
    assert scores["RQ_per_class"] == pytest.approx([0.8, 1 / 1.5, math.nan, 1, 0, math.nan], nan_ok=True)
    assert scores["PQ"] == pytest.approx((0.64 + 0.4 + 0.9) / 4) and scores["thing_PQ"] == pytest.approx(0.52)
    assert scores["stuff_PQ"] == pytest.approx(0.45) and scores["stuff_SQ"] == pytest.approx(0.45)
    assert scores["base_PQ"] == pytest.approx(1.54 / 3) and scores["novel_PQ"] == pytest.approx(0.4)
    assert scores["harmonic_PQ"] == pytest.approx(2 / (3 / 1.54 + 1 / 0.4))
    as_published = panoptic_scores(counts, VOCABULARY, absent_as_zero=True)
    assert as_published["base_PQ"] == pytest.approx(1.54 / 4) and as_published["novel_PQ"] == pytest.approx(0.2)
    assert as_published["PQ"] == scores["PQ"] and as_published["thing_PQ"] == scores["thing_PQ"]


def test_nothing_scored_is_nan():
    scores = panoptic_scores(np.zeros((K, 4)), VOCABULARY)
    assert math.isnan(scores["PQ"]) and math.isnan(scores["novel_RQ"]) and scores["classes_scored"] == 0


def test_ids_of_the_truth_without_entry_are_another_class():
    truth = map_of([[9, 9, 9, 1]])
    counts = panoptic_counts(truth, [{"id": 1, "class_id": 0}], map_of([[2, 2, 2, 2]]), [{"id": 2, "class_id": 0}], K)
    assert counts[0].tolist() == [0, 0, 1, 1]  # the ids 9 are no "no truth", which would excuse the prediction


def test_no_segments_at_all():
    assert not panoptic_counts(map_of([[0, 0]]), [], map_of([[0, 0]]), [], K).any()
    missed = panoptic_counts(map_of([[1, 0]]), [{"id": 1, "class_id": 2}], map_of([[0, 0]]), [], K)
    assert missed[2].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "prediction, segments, message",
    [
        ([[1, 2]], [{"id": 1, "class_id": 0}], r"holds the ids \[2\], which are not in the list"),
        ([[1, 1]], [{"id": 1, "class_id": 0}, {"id": 4, "class_id": 0}], r"segments \[4\] have no pixel"),
        ([[1, 1]], [{"id": 1, "class_id": 6}], r"segment 1 has class 6, outside 0..5"),
        ([[1, 1]], [{"id": 1, "class_id": None}], r"segment 1 has class None"),
        ([[1, 1]], [{"id": 1, "class_id": 0}, {"id": 1, "class_id": 2}], "give each its own"),
        ([[1], [1]], [{"id": 1, "class_id": 0}], "resize the prediction"),
        ([[1, -1]], [{"id": 1, "class_id": 0}], "negative id"),
    ],
)
def test_what_does_not_belong_together(prediction, segments, message):
    with pytest.raises(PanopticError, match=message):
        panoptic_counts(map_of([[1, 1]]), [{"id": 1, "class_id": 0}], map_of(prediction), segments, K)


def test_shared_pixels_of_noise():
    g = np.random.default_rng(0)
    a, b = g.integers(0, 4, (40, 50)).astype(np.uint8), g.integers(0, 2**24, (40, 50))
    for first, second, shared in zip(*overlaps(a, b)):
        assert shared == ((a == first) & (b == second)).sum()
    assert sum(overlaps(a, b)[2]) == a.size


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 3), (5, 8), (9, 13)])
def test_shared_pixels_of_any_number_of_pixels(size):
    g = np.random.default_rng(sum(size))
    a, b = g.integers(0, 2, size), g.integers(0, 3, size).astype(np.int32)
    found = {(int(x), int(y)): int(n) for x, y, n in zip(*overlaps(a, b))}
    pairs, pixels = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    assert found == {(int(x), int(y)): int(n) for (x, y), n in zip(pairs.T, pixels)}


@pytest.mark.parametrize("different", [5, 300, 5000])
def test_keys_that_share_a_slot_of_the_hash(different):
    """With 300 keys some meet under every multiplier or under the first ones; with 5,000 all multipliers fail and keys are sorted."""
    g = np.random.default_rng(1)
    distinct = g.integers(0, 2**62, different)
    keys, weights = g.permutation(np.repeat(distinct, 3)), g.integers(1, 9, 3 * different)
    found, sums = _sums_by_key(keys, weights)
    order = found.argsort()
    expected = np.unique(keys)
    np.testing.assert_array_equal(found[order], expected)
    np.testing.assert_array_equal(sums[order], [weights[keys == key].sum() for key in expected])


def batches_of(indices):
    for i in indices:
        truth, true_segments, *_ = scene(i)
        yield {
            "nsentences": 1,
            "id": torch.tensor([i]),
            "native_segment_maps": [torch.from_numpy(truth)],
            "native_segments": [true_segments],
        }


def predict(batch):
    results = []
    for i in batch["id"].tolist():
        *_, prediction, segments = scene(i)
        found = PanopticSegmentation(torch.from_numpy(prediction), segments)
        results.append(SegmentationOutput(torch.zeros(prediction.shape, dtype=torch.long), panoptic=found))
    return results


def run(indices):
    return evaluate_batches(batches_of(indices), predict, PanopticEvaluator(VOCABULARY)).scores


def _rank(rank, world, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    try:
        (folder / f"{rank}.json").write_text(json.dumps(run(rank_indices(7))))
    finally:
        dist.destroy_process_group()


def test_two_ranks_score_as_one(tmp_path):
    mp.start_processes(_rank, args=(2, f"file://{tmp_path}/meet", tmp_path), nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    expected = json.loads(json.dumps(run(range(7))))
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        same = value if isinstance(value, list) and isinstance(value[0], str) else pytest.approx(value, rel=1e-12, nan_ok=True)
        assert first[key] == same and second[key] == same
    assert expected["images"] == 7


def test_rows_without_segments_and_models_without_them():
    evaluator = PanopticEvaluator(VOCABULARY)
    output = SegmentationOutput(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="carry no segments"):
        evaluator.update([output], {})
    with pytest.raises(ValueError, match="made no panoptic"):
        evaluator.update([output], {"native_segment_maps": [torch.zeros(2, 2)], "native_segments": [[]]})
    with pytest.raises(ValueError, match="do not fit 6 classes"):
        panoptic_scores(np.zeros((5, 4)), VOCABULARY)

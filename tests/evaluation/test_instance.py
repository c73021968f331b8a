"""AP of instances: by hand, against pycocotools fed by files in the ordinary way, and over ranks."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ofaseg.evaluation.evaluator import evaluate_batches, rank_indices
from ofaseg.evaluation.instance import InstanceEvaluator, objects_of_segments
from ofaseg.evaluation.mask_geometry import boxes_of_masks
from ofaseg.structures import InstanceSegmentation, SegmentationOutput
from ofaseg.utils.run_lengths import mask_of_text, text_of_mask
from ofaseg.vocabulary import ClassVocabulary

pytest.importorskip("pycocotools")
VOCABULARY = ClassVocabulary(
    names=("sky", "cat", "dog", "cow", "road"), thing=(False, True, True, True, False), novel=(False, False, False, True, True)
)
H, W = 60, 120


def entry(mask, class_id, is_crowd=False):
    ys, xs = np.nonzero(mask)
    box = [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]
    return {"id": 7, "class_id": class_id, "is_crowd": is_crowd, "area": float(mask.sum()), "box": box, "mask": text_of_mask(mask)}


def rectangle(y0, x0, y1, x1):
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances_of(found):
    """InstanceSegmentation of (mask, class id, score) triples."""
    masks = torch.from_numpy(np.stack([mask for mask, _, _ in found])) if found else torch.zeros(0, H, W, dtype=torch.bool)
    classes, scores = torch.tensor([k for _, k, _ in found], dtype=torch.long), torch.tensor([s for *_, s in found])
    return InstanceSegmentation(masks, classes, scores, boxes_of_masks(masks))


def score(photos, **options):
    """Scores of (truth, found) pairs, one per photo."""
    evaluator = InstanceEvaluator(VOCABULARY, **options)
    for number, (truth, found) in enumerate(photos):
        output = SegmentationOutput(torch.zeros(H, W, dtype=torch.long), instances=instances_of(found))
        batch = {"id": torch.tensor([number]), "native_sizes": [(H, W)], "native_instances": [truth]}
        evaluator.update([output], batch)
    return evaluator.compute()


def test_perfect_and_absent():
    cat, dog = rectangle(0, 0, 10, 10), rectangle(20, 20, 50, 70)
    scores = score([([entry(cat, 1), entry(dog, 2)], [(cat, 1, 0.9), (dog, 2, 0.2)]), ([], [])])
    assert [scores[key] for key in ("AP", "AP50", "AP75", "AR", "base_AP")] == pytest.approx([1] * 5)
    assert (scores["AP_small"], scores["AP_medium"]) == pytest.approx((1, 1)) and math.isnan(scores["AP_large"])
    assert math.isnan(scores["novel_AP"]) and scores["images"] == 2
    assert scores["AP_per_class"] == pytest.approx([math.nan, 1, 1, math.nan, math.nan], nan_ok=True)


def test_an_iou_of_0_62_passes_three_thresholds():
    scores = score([([entry(rectangle(0, 0, 10, 100), 1)], [(rectangle(0, 0, 10, 62), 1, 0.5)])])
    assert scores["AP"] == pytest.approx(0.3) and scores["AP50"] == pytest.approx(1) and scores["AP75"] == 0


def test_classes_and_order_of_scores_count():
    cat, elsewhere = rectangle(0, 0, 10, 10), rectangle(30, 30, 40, 40)
    assert score([([entry(cat, 1)], [(cat, 2, 0.9)])])["AP"] == 0
    wrong_first = score([([entry(cat, 1)], [(cat, 1, 0.3), (elsewhere, 1, 0.8)])])
    assert wrong_first["AP"] == pytest.approx(0.5)
    assert score([([entry(cat, 1)], [(cat, 1, 0.8), (elsewhere, 1, 0.3)])])["AP"] == pytest.approx(1)
    novel = score([([entry(cat, 1), entry(elsewhere, 3)], [(cat, 1, 0.8)])])
    assert (novel["base_AP"], novel["novel_AP"], novel["AP"]) == pytest.approx((1, 0, 0.5))


def test_what_lies_on_a_crowd_is_excused():
    crowd, cat = rectangle(20, 0, 60, 120), rectangle(0, 0, 10, 10)
    on_crowd = rectangle(30, 10, 40, 20)
    truth = [entry(cat, 1), entry(crowd, 1, is_crowd=True)]
    assert score([(truth, [(cat, 1, 0.5), (on_crowd, 1, 0.9)])])["AP"] == pytest.approx(1)
    assert score([(truth[:1], [(cat, 1, 0.5), (on_crowd, 1, 0.9)])])["AP"] == pytest.approx(0.5)


def test_boxes_are_scored_when_asked():
    ring = rectangle(0, 0, 30, 30) & ~rectangle(2, 2, 28, 28)
    scores = score([([entry(ring, 1)], [(rectangle(0, 0, 30, 30), 1, 0.5)])], kinds=("segm", "bbox"))
    assert scores["AP"] == 0 and scores["box_AP"] == pytest.approx(1)


def drawn(number):
    """Truth and findings of photo `number`: moved, relabelled and invented rectangles."""
    g = np.random.default_rng(number)
    truth, found = [], []
    for _ in range(6):
        y, x, h, w = g.integers(0, 20), g.integers(0, 60), g.integers(4, 38), g.integers(4, 58)
        class_id = int(g.integers(1, 4))
        truth.append(entry(rectangle(y, x, y + h, x + w), class_id, bool(g.random() < 0.15)))
        if g.random() < 0.8:
            d = g.integers(-2, 3, 4)
            mask = rectangle(max(0, y + d[0]), max(0, x + d[1]), y + h + d[2], x + w + d[3])
            found.append((mask, class_id if g.random() < 0.8 else 2, float(np.float32(g.random()))))
    return truth, found


def test_as_from_files(tmp_path):
    """The same numbers as pycocotools' own way: a JSON file of truth, one of results, and its summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = {"images": [], "annotations": [], "categories": [{"id": k, "name": VOCABULARY.names[k]} for k in (1, 2, 3)], "info": {}}
    results = []
    for number in range(8):
        truth, found = drawn(number)
        data["images"].append({"id": number, "height": H, "width": W})
        for e in truth:
            x0, y0, x1, y1 = e["box"]
            about = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": e["class_id"], "iscrowd": int(e["is_crowd"])}
            about |= {"area": e["area"], "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": {"size": [H, W], "counts": e["mask"]}}
            data["annotations"].append(about)
        for mask, class_id, score_ in found:
            segmentation = {"size": [H, W], "counts": text_of_mask(mask)}
            results.append({"image_id": number, "category_id": class_id, "segmentation": segmentation, "score": score_})
    for name, content in (("truth", data), ("results", results)):
        (tmp_path / name).write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = score([drawn(number) for number in range(8)])
    keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium")
    assert [scores[key] for key in keys] == pytest.approx(evaluation.stats[:5].tolist()) and 0.1 < scores["AP"] < 0.9
    assert scores["AR"] == pytest.approx(evaluation.stats[8])


def batches_of(indices):
    for i in indices:
        yield {"nsentences": 1, "id": torch.tensor([i]), "native_sizes": [(H, W)], "native_instances": [drawn(i)[0]]}


def run(indices):
    def predict(batch):
        found = [instances_of(drawn(i)[1]) for i in batch["id"].tolist()]
        return [SegmentationOutput(torch.zeros(H, W, dtype=torch.long), instances=each) for each in found]

    return evaluate_batches(batches_of(indices), predict, InstanceEvaluator(VOCABULARY)).scores


def _rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        (folder / f"{rank}.json").write_text(json.dumps(run(rank_indices(5))))
    finally:
        dist.destroy_process_group()


def test_two_ranks_score_as_one(tmp_path):
    mp.start_processes(_rank, args=(2, tmp_path), nprocs=2, start_method="fork")
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in (0, 1))
    assert first == second == json.dumps(run(range(5)))


def test_segments_stand_for_objects():
    """Without the column of objects the things of the segment map are scored."""
    ids = torch.zeros(H, W, dtype=torch.int32)
    ids[:10, :10], ids[20:50, 20:70], ids[55:] = 5, 70_000, 9
    segments = [{"id": 5, "class_id": 1}, {"id": 70_000, "class_id": 2, "is_crowd": False}, {"id": 9, "class_id": 4}]
    objects = objects_of_segments(ids.numpy(), segments, (1, 2, 3))
    assert [(entry["class_id"], entry["area"], entry["box"]) for entry in objects] == [
        (1, 100.0, [0.0, 0.0, 10.0, 10.0]),
        (2, 1500.0, [20.0, 20.0, 70.0, 50.0]),
    ]
    np.testing.assert_array_equal(mask_of_text(objects[1]["mask"], H, W), (ids == 70_000).numpy())
    found = instances_of([((ids == 5).numpy(), 1, 0.9), (rectangle(20, 20, 50, 61), 2, 0.8)])
    batch = {"id": torch.tensor([0]), "native_sizes": [(H, W)], "native_segment_maps": [ids], "native_segments": [segments]}
    evaluator = InstanceEvaluator(VOCABULARY)
    evaluator.update([SegmentationOutput(ids.long(), instances=found)], batch)
    scores = evaluator.compute()
    assert scores["AP_per_class"][1] == pytest.approx(1) and scores["AP_per_class"][2] == pytest.approx(0.7)  # IoU 0.82: 7 of 10 thresholds


def test_faults(monkeypatch):
    evaluator = InstanceEvaluator(VOCABULARY)
    output = SegmentationOutput(torch.zeros(H, W, dtype=torch.long))
    batch = {"id": torch.tensor([0]), "native_sizes": [(H, W)], "native_instances": [[]]}
    with pytest.raises(ValueError, match="carry no objects"):
        evaluator.update([output], {})
    with pytest.raises(ValueError, match="made no instances"):
        evaluator.update([output], batch)
    output.instances = instances_of([(rectangle(0, 0, 4, 4).T, 1, 0.5)])
    with pytest.raises(ValueError, match=r"masks of \(120, 60\) pixels for a photo of \(60, 120\)"):
        evaluator.update([output], batch)
    with pytest.raises(ValueError, match="choose from segm, bbox"):
        InstanceEvaluator(VOCABULARY, kinds=("keypoints",))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        InstanceEvaluator(VOCABULARY)


def test_masks_travel_unchanged():
    mask = rectangle(3, 5, 9, 11)
    np.testing.assert_array_equal(mask_of_text(entry(mask, 1)["mask"], H, W), mask)


def test_classes_without_a_thing_have_no_ap():
    with pytest.raises(ValueError, match="marked as stuff; leave out the task instance"):
        InstanceEvaluator(ClassVocabulary(("sky", "road"), thing=(False, False)))

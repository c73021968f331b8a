"""Scoring names by their classes, the check of the order, and the table."""

import pytest
import torch

from ofaseg.evaluation import robustness
from ofaseg.evaluation.namings import Naming
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.evaluation.robustness import NamingEvaluator, OrderCheck, Row, markdown, post_for, to_json
from ofaseg.evaluation.semantic import semantic_scores
from ofaseg.evaluation.zero_shot_settings import load_settings
from ofaseg.structures import SegmentationOutput
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

VOCABULARY = ClassVocabulary(("a", "b", "c"), thing=(True, True, False), source="test")
NAMING = Naming("test", tuple("uvwxyz"), (2, 0, 0, 1, 3, 3))  # x stands for b, y and z for nothing


def evaluated(prediction, label, naming=NAMING):
    evaluator = NamingEvaluator(VOCABULARY, naming)
    evaluator.update([SegmentationOutput(prediction)], {"native_label_maps": [label]})
    return evaluator


def test_scores_equal_a_loop_over_classes():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 6, (30, 40), generator=generator)
    label = torch.randint(-1, 3, (30, 40), generator=generator)
    evaluator = evaluated(prediction, label)
    scores = evaluator.compute()
    stands_for = torch.tensor([{"u": 2, "v": 0, "w": 0, "x": 1}.get("uvwxyz"[i], -9) for i in prediction.flatten()]).view(30, 40)
    labelled = label != IGNORE_INDEX
    for k in range(3):
        hit = ((stands_for == k) & (label == k)).sum().item()
        union = (((stands_for == k) | (label == k)) & labelled).sum().item()
        assert scores["IoU_per_class"][k] == pytest.approx(hit / union)
        assert scores["acc_per_class"][k] == pytest.approx(hit / (label == k).sum().item())
    assert scores["mIoU"] == pytest.approx(sum(scores["IoU_per_class"]) / 3) and scores["pixels"] == labelled.sum().item()
    assert scores["no_class_share"] == pytest.approx((labelled & (stands_for == -9)).sum().item() / labelled.sum().item())
    assert scores["images"] == 1 and scores["constant"]["mIoU"] > 0
    assert scores["mIoU"] != semantic_scores(evaluator.matrix()[:, [1, 0, 2, 3]], VOCABULARY)["mIoU"]


def test_what_cannot_be_is_found():
    label = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="given 6 names"):
        evaluated(label + 6, label)
    with pytest.raises(ValueError, match="label outside 0..2"):
        evaluated(label, label + 3).compute()
    with pytest.raises(ValueError, match="classes outside 0..3"):
        NamingEvaluator(VOCABULARY, Naming("test", ("a",), (4,)))


def test_the_order_check_counts_pixels():
    before = torch.zeros(100, 100, dtype=torch.long)
    for changed, passed in ((0, True), (10, True), (11, False)):
        check, after = OrderCheck(), before.clone()
        check.remember(3, before)
        after.view(-1)[:changed] = 1
        check.compare(3, after)
        assert check.compute(True) == {"pixels": 10000, "differing": changed, "share": changed / 10000, "passed": passed}
        assert check.compute(False)["passed"] is None
    assert OrderCheck().compute(True)["passed"] is False  # nothing was compared
    assert "FAILED" in robustness.order_line(check.compute(True)) and "passed" in robustness.order_line(
        check.compute(True) | {"passed": True}
    )


def test_the_background_is_found_where_the_naming_has_it():
    post = PostProcess(candidates=load_settings("pascal_voc"))
    assert post_for(post, NAMING).candidates.background_class == 1
    assert post_for(PostProcess(), NAMING) == PostProcess()


def test_the_table_has_differences_in_points_and_says_what_did_not_fit():
    def scores(miou):
        return {"mIoU": miou, "thing_mIoU": miou, "mAcc": 0.5, "no_class_share": 0.25}

    rows = [Row(NAMING, scores(0.412)), Row(NAMING, scores(0.40)), Row(NAMING, problem="too long")]
    lines = markdown(rows).splitlines()
    assert lines[0] == "| naming | names | renamed | mIoU | objects | mAcc | no class |"
    assert lines[2:4] == [
        "| test | 6 | 0 | 41.2 | 41.2 | 50.0 | 25.0 |", "| test | 6 | 0 | 40.0 (-1.2) | 40.0 (-1.2) | 50.0 (+0.0) | 25.0 |",
    ]  # fmt: skip
    assert lines[4:] == ["| test | 6 | 0 | does not fit | – | – | – |", "", "- test: does not fit: too long"]
    data = to_json(rows, None)
    assert data["namings"][1]["difference"]["mIoU"] == pytest.approx(-0.012) and data["namings"][2]["does_not_fit"] == "too long"

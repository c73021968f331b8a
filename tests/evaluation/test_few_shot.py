"""mIoU over held-out classes and FB-IoU: hand cases, a loop written the way of HSNet's code, the official code's counts, several ranks."""

import math

import numpy as np
import pytest
import torch

from ofaseg.evaluation import few_shot
from ofaseg.evaluation.evaluator import evaluate_batches
from ofaseg.evaluation.few_shot import FewShotEvaluator, few_shot_scores, mean_over_folds, pair_counts
from ofaseg.evaluation.report import few_shot_class_table, markdown_table
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

VOCABULARY = ClassVocabulary(names=("background", "cat", "dog", "cow", "hen"))
NOVEL = (2, 3, 4)


def made_up_pair(index, size=(9, 7)):
    """(prediction, target, class) with ignored pixels; class 4 is never tested, every fifth target shows nothing of its class."""
    rng = np.random.default_rng(index)
    target = (rng.random(size) < 0.3).astype(np.int8) * (index % 5 > 0)
    prediction = np.where(rng.random(size) < 0.7, target == 1, rng.random(size) < 0.5)
    target[rng.random(size) < 0.15] = IGNORE_INDEX
    return torch.from_numpy(prediction), torch.from_numpy(target.astype(np.int8)), 2 + index % 2


def loop_scores(pairs, classes, protocol):
    """mIoU and FB-IoU pixel by pixel: ignored pixels become a third value on both sides, areas are histograms of agreement."""
    inter, union = {(j, c): 0 for j in (0, 1) for c in classes}, {(j, c): 0 for j in (0, 1) for c in classes}
    for prediction, target, c in pairs:
        if protocol == "fusioner" and not any(value == 1 for value in target.flatten().tolist()):
            continue
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist()):
            p, t = (255, 255) if t == IGNORE_INDEX else (int(p), t)
            for j in (0, 1):
                inter[j, c] += p == t == j
                union[j, c] += (p == j) + (t == j) - (p == t == j)
    used = [c for c in classes if union[1, c] or protocol == "hsnet"]
    miou = sum(inter[1, c] / max(union[1, c], 1) for c in used) / len(used)
    return miou, sum(sum(inter[j, c] for c in used) / sum(union[j, c] for c in used) for j in (0, 1)) / 2


def batch_of(indices):
    pairs = [made_up_pair(index) for index in indices]
    target, class_ids = torch.stack([t for _, t, _ in pairs])[:, None], torch.tensor([[c] for _, _, c in pairs])
    return {"nsentences": len(pairs), "indices": indices, "target": target, "net_input": {"class_ids": class_ids}}


def masks(batch):
    return torch.stack([made_up_pair(index)[0] for index in batch["indices"]])[:, None]


@pytest.mark.parametrize("protocol", ["fusioner", "hsnet"])
def test_scores_are_those_of_a_loop_over_pixels(protocol):
    for batches in ([range(12)], [range(5), range(5, 12)]):
        run = evaluate_batches(map(batch_of, batches), masks, FewShotEvaluator(VOCABULARY, NOVEL, protocol))
        expected = loop_scores([made_up_pair(index) for index in range(12)], NOVEL, protocol)
        assert (run.scores["mIoU"], run.scores["FB_IoU"]) == pytest.approx(expected, rel=1e-12) and run.images == 12
    assert run.scores["empty_pairs"] == 3 and run.scores["pairs"] == (9 if protocol == "fusioner" else 12)
    assert math.isnan(run.scores["IoU_per_class"][2]) if protocol == "fusioner" else run.scores["IoU_per_class"][2] == 0.0


def test_a_case_by_hand():
    """Four pixels, one without label: intersection 1 and union 2 in front, 1 and 2 behind."""
    prediction = torch.tensor([[[[True, True, False, True]]]])
    target = torch.tensor([[[[1, 0, 0, IGNORE_INDEX]]]], dtype=torch.int8)
    counts = pair_counts(prediction, target, torch.tensor([[3]]), 5)
    assert counts[:, 3].tolist() == [1, 1, 2, 2, 1, 0] and not counts[:, [0, 1, 2, 4]].any()
    scores = few_shot_scores(counts, (3,), vocabulary=VOCABULARY)
    assert (scores["mIoU"], scores["FB_IoU"], scores["class_names"]) == (0.5, 0.5, ["cow"])


def test_several_classes_per_photo_count_as_pairs_each():
    pairs = [made_up_pair(index) for index in (1, 2, 3, 4)]
    prediction, target = (torch.stack([pair[k] for pair in pairs]).reshape(2, 2, 9, 7) for k in (0, 1))
    together = pair_counts(prediction, target, torch.tensor([[2, 3], [4, 2]]), 5)
    alone = [pair_counts(p[None, None], t[None, None], torch.tensor([[c]]), 5) for (p, t, _), c in zip(pairs, (2, 3, 4, 2))]
    assert torch.equal(together, sum(alone)) and together.dtype == torch.int64


def test_masks_at_the_photos_own_sizes():
    evaluator = FewShotEvaluator(VOCABULARY, NOVEL)
    pairs = [made_up_pair(1, (9, 7)), made_up_pair(2, (4, 11))]
    batch = {"net_input": {"class_ids": torch.tensor([[3], [2]])}, "native_targets": [t[None] for _, t, _ in pairs]}
    evaluator.update([p[None] for p, _, _ in pairs], batch)
    expected = loop_scores([(p, t, c) for (p, t, _), c in zip(pairs, (3, 2))], NOVEL, "fusioner")
    assert (evaluator.compute()["mIoU"], evaluator.compute()["FB_IoU"]) == pytest.approx(expected)


def test_counts_and_scores_of_the_official_code(golden_dir):
    """Pixel counts of two pairs, of classes 1 and 16, with the scores that the official code makes of them."""
    path = golden_dir / "fusioner_tiny.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in --golden-dir")
    golden = np.load(path, allow_pickle=False)
    counts = torch.zeros(6, 21, dtype=torch.long)
    counts[:2], counts[2:4] = (torch.from_numpy(golden[f"metric/{name}"]).long() for name in ("intersection", "union"))
    counts[4] = (counts[3] > 0).long()
    scores = few_shot_scores(counts, range(1, 21))
    assert (scores["mIoU"], scores["FB_IoU"]) == pytest.approx((float(golden["metric/miou"]), float(golden["metric/fbiou"])), abs=1e-7)
    assert scores["classes_scored"] == 2


def test_two_ranks_give_the_scores_of_one(monkeypatch):
    """What a rank hands to the sum over ranks is its counts: added to those of another rank, they give the scores of the whole set."""
    other = FewShotEvaluator(VOCABULARY, NOVEL)
    other.update(masks(batch_of(range(5))), batch_of(range(5)))
    whole = evaluate_batches([batch_of(range(12))], masks, FewShotEvaluator(VOCABULARY, NOVEL)).scores
    theirs = other.counts()
    monkeypatch.setattr(few_shot, "sum_over_ranks", lambda counts: counts + theirs)
    half = evaluate_batches([batch_of(range(5, 12))], masks, FewShotEvaluator(VOCABULARY, NOVEL)).scores
    assert str(half) == str(whole), "nan is equal here"


def test_large_sums_stay_exact():
    """2**24 + 1 is no float32."""
    counts = torch.zeros(6, 5, dtype=torch.long)
    counts[:, 2] = torch.tensor([5, 2**24 + 1, 7, 2**24 + 3, 1, 0])
    assert few_shot_scores(counts, (2,))["mIoU"] == (2**24 + 1) / (2**24 + 3)


def test_mean_over_folds_is_plain():
    counts = sum(pair_counts(p[None, None], t[None, None], torch.tensor([[c]]), 5) for p, t, c in map(made_up_pair, range(12)))
    folds = [few_shot_scores(counts, classes, vocabulary=VOCABULARY) for classes in ((2,), (3,))]
    mean = mean_over_folds(folds)
    assert mean["mIoU"] == pytest.approx((folds[0]["mIoU"] + folds[1]["mIoU"]) / 2) and folds[0]["mIoU"] != folds[1]["mIoU"]
    assert mean["FB_IoU_per_fold"] == [fold["FB_IoU"] for fold in folds] and mean["class_names"] == ["dog", "cow"]
    assert "| FB-IoU |" in markdown_table([("mean", mean)])
    assert few_shot_class_table(mean).splitlines()[2] == f"| dog | {100 * folds[0]['IoU_per_class'][0]:.1f} | 4 |"
    with pytest.raises(ValueError, match="class 'dog' is held out in two of the 2 folds"):
        mean_over_folds([folds[0], folds[0]])
    with pytest.raises(ValueError, match="folds of the protocols"):
        mean_over_folds([folds[0], folds[1] | {"protocol": "hsnet"}])


def test_nothing_tested_is_no_score():
    scores = FewShotEvaluator(VOCABULARY, NOVEL).compute()
    assert math.isnan(scores["mIoU"]) and math.isnan(scores["FB_IoU"]) and scores["pairs"] == 0


def test_what_does_not_fit_is_refused():
    prediction, target, _ = made_up_pair(1)
    with pytest.raises(ValueError, match="do not fit; compare them at one size"):
        pair_counts(prediction[None, None, 1:], target[None, None], torch.tensor([[2]]), 5)
    with pytest.raises(ValueError, match="unknown protocol 'voc'; choose from fusioner, hsnet"):
        FewShotEvaluator(VOCABULARY, NOVEL, "voc")

"""Panoptic quality pixel list by pixel list, after the definition; the benchmark and the tests compare with it."""

import numpy as np


def naive_counts(truth, true_segments, prediction, segments, num_classes):
    """(K, 4) sum of IoU, true positives, false positives, false negatives, by looping over all pairs of segments."""
    counts = np.zeros((num_classes, 4))
    void, matched_true, matched_pred = truth == 0, set(), set()
    for true in true_segments:
        for pred in segments:
            if true.get("is_crowd") or true["class_id"] != pred["class_id"]:
                continue
            a, b = truth == true["id"], prediction == pred["id"]
            shared = int((a & b).sum())
            union = int(true.get("area", a.sum())) + int(b.sum()) - shared - int((b & void).sum())
            if shared and shared / union > 0.5:
                counts[pred["class_id"], 0] += shared / union
                counts[pred["class_id"], 1] += 1
                matched_true.add(true["id"])
                matched_pred.add(pred["id"])
    crowd = {}
    for true in true_segments:
        if true.get("is_crowd"):
            crowd[true["class_id"]] = true["id"]
        elif true["id"] not in matched_true:
            counts[true["class_id"], 3] += 1
    for pred in segments:
        if pred["id"] in matched_pred:
            continue
        pixels = prediction == pred["id"]
        excused = (pixels & void).sum()
        if pred["class_id"] in crowd:
            excused += (pixels & (truth == crowd[pred["class_id"]])).sum()
        if excused / pixels.sum() <= 0.5:
            counts[pred["class_id"], 2] += 1
    return counts

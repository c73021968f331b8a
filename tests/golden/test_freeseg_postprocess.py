"""FreeSeg's post-processing against the published code: every `freeseg_*.npz` of --golden-dir that holds cases of it.

A case gives mask, class and CLIP logits of one image and what the published code made of them.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofaseg.evaluation.mask_postprocess import MaskRules, instances, panoptic_segments
from ofaseg.evaluation.mask_proposals import class_map, classify_masks, semantic_maps
from tests.golden.golden_weights import load_golden

GOLDEN_KIND = "freeseg"
TIE = 1e-5
"""Two best scores that lie closer may change places."""


@pytest.fixture(scope="module")
def golden(golden_file):
    """(spec, list of cases), each the arrays of one image."""
    spec, arrays = load_golden(str(golden_file))
    numbers = sorted({int(match[1]) for match in (re.fullmatch(r"case_(\d+)/mask_logits", key) for key in arrays) if match})
    if not numbers:
        pytest.skip("no post-processing case in this file")
    start = "case_{}/".format
    return spec, [{key[len(start(n)) :]: value for key, value in arrays.items() if key.startswith(start(n))} for n in numbers]


@pytest.fixture(scope="module")
def results(golden):
    """(case, proposals, things, rules) of every case."""
    spec, cases = golden
    base = torch.tensor(spec["seen_flag"], dtype=torch.bool)
    thing = torch.tensor([name in spec["thing_classes"] for name in spec["test_classes"]])
    found, rules = [], MaskRules(overlap_threshold=spec["overlap_threshold"])
    for case in cases:
        clip = [torch.from_numpy(case[key]) for key in ("clip_logits", "clip_valid")] if bool(case["ensemble"]) else [None, None]
        masks, logits = (torch.from_numpy(case[key]) for key in ("mask_logits", "class_logits"))
        found.append((case, classify_masks(masks, logits, *clip, base, float(case["ensemble_weight"])), thing, rules))
    return found


def near_ties(scores: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels whose two best classes are equal up to rounding, once the scores (K, h, w) have that size."""
    if tuple(scores.shape[1:]) != tuple(size):
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    best = scores.topk(2, dim=0).values
    return (best[0] - best[1] < TIE).numpy()


def test_semantic_scores(results):
    for case, proposals, *_ in results:
        scores, expected = semantic_maps(proposals), case["semantic_scores_every_8th"]
        np.testing.assert_allclose(scores[:, ::8, ::8].numpy(), expected, rtol=0, atol=1e-5 * expected.max())


def test_class_map(results):
    for case, proposals, *_ in results:
        expected = case["semantic_argmax"]
        free = near_ties(semantic_maps(proposals), expected.shape)
        assert free.mean() < 0.5
        np.testing.assert_array_equal(class_map(proposals, expected.shape).numpy()[~free], expected[~free])


def test_panoptic_segments(results):
    for case, proposals, thing, rules in results:
        found = panoptic_segments(proposals, thing, case["panoptic"].shape, rules)
        free = near_ties(semantic_maps(proposals), case["panoptic"].shape)
        np.testing.assert_array_equal(found.segment_map.numpy()[~free], case["panoptic"][~free])
        assert [[s["id"], int(s["is_thing"]), s["class_id"]] for s in found.segments] == case["segments"].tolist()
        assert [s["area"] for s in found.segments] == [int((found.segment_map == s["id"]).sum()) for s in found.segments]


def test_instances(results):
    for case, proposals, thing, rules in results:
        found = instances(proposals, case["instance_pred_masks"].shape[1:], thing, rules)
        np.testing.assert_array_equal(found.masks.numpy(), case["instance_pred_masks"].astype(bool))
        np.testing.assert_array_equal(found.class_ids.numpy(), case["instance_pred_classes"])
        np.testing.assert_allclose(found.scores.numpy(), case["instance_scores"], rtol=1e-5)

"""Mask post-processing against a loop over queries that follows the published description step by step, on drawn masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ofaseg.evaluation.mask_postprocess import MaskRules, instances, panoptic_segments
from ofaseg.evaluation.mask_proposals import class_map, classify_masks, semantic_maps, upsample_masks

H, W = 36, 52


def draw(num_classes, seed, queries=12):
    """Rectangles with graded logits, confident class logits of few classes, CLIP logits, base and thing marks."""
    g = np.random.default_rng(seed)
    masks = np.full((queries, H, W), -6.0, dtype=np.float32)
    for mask in masks:
        y, x, h, w = g.integers(0, H - 8), g.integers(0, W - 8), g.integers(4, 22), g.integers(4, 26)
        mask[y : y + h, x : x + w] = g.choice([0.3, 1.0, 4.0], size=mask[y : y + h, x : x + w].shape, p=[0.1, 0.2, 0.7])
    logits = g.normal(0, 1, (queries, num_classes + 1)).astype(np.float32)
    favourites = g.integers(0, num_classes, 4)
    chosen, margin = g.choice(favourites, queries), g.choice([4, 9], queries).astype(np.float32)
    twins = slice(0, 6, 2), slice(1, 6, 2)  # proposals of one object twice
    masks[twins[1]], chosen[twins[1]] = np.roll(masks[twins[0]], 1, 2), chosen[twins[0]]
    logits[np.arange(queries), chosen] += margin
    clip = g.normal(0, 2, (queries, num_classes)).astype(np.float32)
    valid, base, thing = g.random(queries) > 0.2, g.random(num_classes) > 0.3, g.random(num_classes) > 0.4
    thing[chosen[:4]] = True
    return [torch.from_numpy(a) for a in (masks, logits, clip, valid, base, thing)]


def naive_scores(logits, clip, valid, base, weight):
    """Class scores one by one."""
    own, seen = torch.softmax(logits, -1).double()[:, :-1], torch.softmax(clip, -1).double()
    result = torch.zeros_like(own)
    for q in range(len(own)):
        for k in range(own.shape[1]):
            c = seen[q, k] if valid[q] else 1.0
            w = weight if base[k] else 1 - weight
            result[q, k] = own[q, k] ** w * c ** (1 - w)
    return result.float()


def pillow(mask, size):
    return np.array(Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST))


def naive_panoptic(masks, scores, thing, size):
    """(ids, [(id, class)]) by a loop in which later queries paint over earlier ones."""
    soft = masks.sigmoid()
    sem = torch.einsum("qk,qhw->khw", scores, soft).argmax(0).numpy()
    sharp = (scores / 0.01).softmax(-1)
    ids, segments, stuff = np.zeros((H, W), np.uint8), [], {}
    for q in range(len(masks)):
        score, label = sharp[q].max().item(), int(sharp[q].argmax())
        mask = (soft[q] >= 0.5).numpy()
        own = mask & (sem == label)
        if not own.any() or own.sum() / mask.sum() < 0.5 or (thing[label] and score < 0.5):
            continue
        if not thing[label] and label in stuff:
            ids[own] = stuff[label]
            continue
        segments.append((len(segments) + 1, label))
        ids[own] = len(segments)
        if not thing[label]:
            stuff[label] = len(segments)
    ids = pillow(ids, size)
    return ids, [segment for segment in segments if (ids == segment[0]).any()]


def naive_instances(masks, scores, thing, size, suppression):
    """[(class, score, mask)] by a loop."""
    soft = masks.sigmoid()
    sem = torch.einsum("qk,qhw->khw", scores, soft).argmax(0).numpy()
    sharp = (scores / 0.01).softmax(-1)[:, :-1]
    kept = []
    for q in range(len(masks)):
        score, label = sharp[q].max().item(), int(sharp[q].argmax())
        mask = (masks[q] >= 0.5).numpy()
        if thing[label] and score > 0.5 and mask.any() and (mask & (sem == label)).sum() / mask.sum() > 0.5:
            kept.append((q, label, score, mask))
    dropped = set()
    groups = {"official": [kept], "off": []}.get(suppression)
    if groups is None:
        groups = [[entry for entry in kept if entry[1] == label] for label in {entry[1] for entry in kept}]
    for group in groups:
        largest = max(group, key=lambda entry: entry[3].sum(), default=None)
        others = [entry[3] for entry in group if entry is not largest]
        if others:
            union = np.any(others, axis=0)
            union = union & largest[3] if suppression == "per_class" else union
            if union.sum() / largest[3].sum() > 0.8:
                dropped.add(largest[0])
    result = []
    for q, label, score, _ in kept:
        if q not in dropped:
            final = (masks[q] > 0).numpy()
            inside = (soft[q].numpy() * final).sum() / (final.sum() + 1e-6)
            result.append((label, score * inside, pillow(final, size)))
    return result


SIZES = [(H, W), (2 * H, 2 * W), (31, 77)]


@pytest.mark.parametrize("num_classes", [171, 133, 20])
def test_against_the_loop(num_classes):
    dropped = {"official": 0, "per_class": 0}
    for seed in range(14 if num_classes == 20 else 5):
        masks, logits, clip, valid, base, thing = draw(num_classes, seed)
        proposals = classify_masks(masks, logits, clip, valid, base, 0.7)
        expected = naive_scores(logits, clip, valid, base, 0.7)
        torch.testing.assert_close(proposals.class_scores, expected, rtol=1e-5, atol=1e-7)
        scores, size = proposals.class_scores, SIZES[seed % 3]
        ids, segments = naive_panoptic(masks, scores, thing, size)
        found = panoptic_segments(proposals, thing, size)
        np.testing.assert_array_equal(found.segment_map.numpy(), ids)
        assert [(s["id"], s["class_id"]) for s in found.segments] == segments
        for s in found.segments:
            ys, xs = np.nonzero(ids == s["id"])
            assert (s["area"], s["box"]) == (len(ys), [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        off = len(naive_instances(masks, scores, thing, size, "off"))
        for suppression in ("official", "per_class", "off"):
            wanted = naive_instances(masks, scores, thing, size, suppression)
            got = instances(proposals, size, thing, MaskRules(suppression=suppression))
            assert got.class_ids.tolist() == [label for label, _, _ in wanted]
            np.testing.assert_allclose(got.scores.numpy(), [score for _, score, _ in wanted], rtol=1e-5)
            for mask, box, (_, _, expected_mask) in zip(got.masks.numpy(), got.boxes.tolist(), wanted, strict=True):
                np.testing.assert_array_equal(mask, expected_mask.astype(bool))
                ys, xs = np.nonzero(expected_mask)
                assert box == ([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0] * 4)
            if suppression != "off":
                dropped[suppression] += off - len(wanted)
    assert dropped["official"] > 2 and dropped["per_class"] > 0  # the cases reach the rule


def test_clip_alone_leaves_masks_without_region_out():
    masks, logits, clip, valid, base, thing = draw(20, 3)
    valid[2] = False
    alone = classify_masks(masks, logits, clip, valid, base, 0.0)
    chosen = classify_masks(masks[valid], logits[valid], clip[valid], None, base, 0.0)
    assert 0 < int(valid.sum()) < len(valid)
    torch.testing.assert_close(chosen.class_scores, clip[valid].softmax(-1))
    torch.testing.assert_close(semantic_maps(alone), semantic_maps(chosen))
    first, second = (panoptic_segments(p, thing, (H, W)) for p in (alone, chosen))
    assert first.segments == second.segments and first.segment_map.equal(second.segment_map)
    assert instances(alone, (H, W), thing).masks.equal(instances(chosen, (H, W), thing).masks)


def test_without_marks_every_class_is_novel():
    masks, logits, clip, valid, base, _ = draw(20, 4)
    unmarked = classify_masks(masks, logits, clip, valid, None, 0.7).class_scores
    novel = classify_masks(masks, logits, clip, valid, torch.zeros(20, dtype=torch.bool), 0.7).class_scores
    assert unmarked.equal(novel) and not unmarked.equal(classify_masks(masks, logits, clip, valid, base, 0.7).class_scores)
    assert unmarked.equal(classify_masks(masks, logits, torch.cat([clip, clip[:, :1] + 50], 1), valid, None, 0.7).class_scores)


@pytest.mark.parametrize("size", [(H, W), (2 * H, 3 * W), (20, 31), (1, 1)])
def test_class_map_at_another_size(size, monkeypatch):
    monkeypatch.setattr("ofaseg.evaluation.mask_proposals.CHUNK_ELEMENTS", 7000)
    masks, logits, *_ = draw(20, 5)
    proposals = classify_masks(masks, logits)
    scores = F.interpolate(semantic_maps(proposals)[None], size=size, mode="bilinear", align_corners=False)[0]
    best = scores.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert clear.float().mean() > 0.8 and class_map(proposals, size)[clear].equal(scores.argmax(0)[clear])


def test_nothing_to_see():
    masks, logits, *_, thing = draw(20, 6)
    empty = classify_masks(torch.full_like(masks, -9.0), logits)
    found = panoptic_segments(empty, thing, (40, 50))
    assert found.segments == [] and found.segment_map.shape == (40, 50) and not found.segment_map.any()
    found = instances(empty, (40, 50), thing)
    assert found.masks.shape == (0, 40, 50) and found.boxes.shape == (0, 4) and not len(found.scores) and not len(found.class_ids)


def test_the_last_class_is_an_object_when_asked():
    masks, logits, *_ = draw(20, 7, queries=1)
    logits[0] = 0
    logits[0, 19] = 20
    proposals = classify_masks(masks, logits)
    assert not len(instances(proposals, (H, W)).scores)
    assert instances(proposals, (H, W), rules=MaskRules(drop_last_class=False)).class_ids.tolist() == [19]


def test_upsampling_stretches_to_the_padded_size():
    ramp = torch.linspace(0, 1, 8).expand(1, 4, 8)
    full = upsample_masks(ramp, (32, 64), (30, 50))
    assert full.shape == (1, 30, 50)
    torch.testing.assert_close(full[0, 0], torch.linspace(0, 1, 64)[:50])
    assert upsample_masks(ramp[None], (32, 64), (30, 50)).equal(full[None])


def test_wrong_shapes_are_named():
    masks, logits, clip, valid, base, _ = draw(20, 8)
    with pytest.raises(ValueError, match="do not fit class logits"):
        classify_masks(masks[:3], logits)
    with pytest.raises(ValueError, match="do not fit 12 masks and 20 classes"):
        classify_masks(masks, logits, clip[:, :5])
    with pytest.raises(ValueError, match="base classes for 20"):
        classify_masks(masks, logits, clip, valid, base[:4])
    with pytest.raises(ValueError, match="choose from official, per_class, off"):
        MaskRules(suppression="all")
    with pytest.raises(ValueError, match="temperature 0"):
        MaskRules(temperature=0)

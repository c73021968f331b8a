"""Results of models of masks: which classes count as base and as things, several tasks at once, averages over views."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip")

from ofaseg.evaluation.mask_postprocess import MaskRules, instances, panoptic_segments  # noqa: E402
from ofaseg.evaluation.mask_proposals import classify_masks, semantic_maps, upsample_masks  # noqa: E402
from ofaseg.evaluation.postprocess import PostProcess  # noqa: E402
from ofaseg.vocabulary import ClassVocabulary, VocabularyError, share_a_word  # noqa: E402
from tests.toy_freeseg import make_task, vocabulary_of  # noqa: E402
from tests.user_tasks.test_unified_segmentation import build  # noqa: E402
from user_tasks.mask_outputs import with_things  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
LOOSE = dict(without_regions=True, score_threshold=0.0, overlap_threshold=0.01, suppression="off")
TRAINED = ClassVocabulary(("Traffic Light", "road, route", "sky-other", "cow"), thing=(1, 0, 0, 1), novel=(0, 0, 0, 1))
WORDS = ClassVocabulary(("traffic_light", "route", "cow", "sky other", "unicorn", "roads"))


def photos(seed=3, size=(50, 70)):
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- classes ----


def test_names_in_other_writing():
    assert share_a_word(WORDS.names, TRAINED.names) == (True, True, True, True, False, False)
    assert share_a_word(("a, b", ",", "c"), ("B", "")) == (True, False, False)


def test_words_trained_on_count_as_base():
    task = make_task(vocabulary=WORDS)
    assert task.base_marks is None  # nothing is known of the training, as for published files
    task.trained_vocabulary = TRAINED
    assert task.base_marks == (True, True, False, True, False, False)  # the cow was held out
    task.cfg.all_novel = True
    assert task.base_marks is None


def test_marks_of_the_vocabulary_come_first():
    extra = {"counted_as_base": ["river"]}
    task = make_task(vocabulary=ClassVocabulary(("cow", "river", "cat"), novel=(True, True, False), extra=extra))
    task.trained_vocabulary = TRAINED
    assert task.base_marks == (False, True, True)


def test_things():
    """Marks of the vocabulary; of free words all but the checkpoint's stuff; or those that are named."""
    task = make_task(vocabulary=WORDS)
    assert task.thing_marks == (True,) * 6
    task.trained_vocabulary = TRAINED
    assert task.thing_marks == (True, False, True, False, True, True)
    assert make_task(vocabulary=WORDS, things="cow, unicorn").thing_marks == (False, False, True, False, True, False)
    assert make_task(vocabulary=WORDS, things="none").thing_marks == (False,) * 6
    assert with_things(ClassVocabulary(("none", "some")), "none").thing == (True, False)
    assert make_task().thing_marks == (True, True, False)
    stuff = ClassVocabulary(("sky", "road"), thing=(False, False))
    assert make_task(vocabulary=stuff).thing_marks == (False, False)  # no thing among the classes is not the same as no marks
    task = make_task(vocabulary=ClassVocabulary(("road", "cat")))
    task.trained_vocabulary = stuff
    assert task.thing_marks == (False, True)
    with pytest.raises(VocabularyError, match="'horse' is no class; name some of traffic_light, route"):
        with_things(WORDS, "cow,horse")


@torch.no_grad()
def test_base_marks_change_the_scores():
    """CLIP's opinion counts less for words that the checkpoint knows."""
    task = make_task(vocabulary=vocabulary_of(thing=()))
    model = build(task)
    output = task.proposals(model, {"image": photos()})["semantic"]
    assert task.trained_vocabulary is task.vocabulary and task.base_marks == (True,) * 3
    regions = (output.region_logits[1], output.region_valid[1])
    own, found = (output.mask_logits[1], output.class_logits[-1][1]), task._classified(output, 1).class_scores
    torch.testing.assert_close(found, classify_masks(*own, *regions, torch.ones(3)).class_scores)
    task.cfg.all_novel = True
    published = classify_masks(*own, *regions).class_scores
    torch.testing.assert_close(task._classified(output, 1).class_scores, published)
    assert not torch.allclose(found, published, atol=1e-3)


def test_options_out_of_range():
    for option in ("overlap_threshold", "score_threshold", "ensemble_weight"):
        with pytest.raises(ValueError, match=f"{option} 1.5: give a number from 0 to 1"):
            make_task(**{option: 1.5})


# ---- several tasks ----


@torch.no_grad()
def test_results_of_each_task():
    """They are made of that task's own proposals by the rules of the configuration."""
    image, sizes = photos(), [(50, 70), (61, 40)]
    task = make_task(**LOOSE, drop_last_class=True)
    model = build(task)
    found = task.predict_batch(model, {"image": image}, sizes, tasks=("semantic", "instance", "panoptic"))
    assert task.rules == MaskRules(overlap_threshold=0.01, score_threshold=0.0, suppression="off", drop_last_class=True)
    outputs, thing, seen = model.predict(image, ("instance", "panoptic"), regions=False), torch.tensor([True, True, False]), 0
    for b, size in enumerate(sizes):
        masks = {name: upsample_masks(output.mask_logits[b], (64, 96), (50, 70)) for name, output in outputs.items()}
        of = {name: classify_masks(masks[name], output.class_logits[-1][b]) for name, output in outputs.items()}
        expected = panoptic_segments(of["panoptic"], thing, size, task.rules)
        assert torch.equal(found[b].panoptic.segment_map, expected.segment_map) and found[b].panoptic.segments == expected.segments
        expected = instances(of["instance"], size, thing, task.rules)
        assert torch.equal(found[b].instances.masks, expected.masks) and torch.equal(found[b].instances.scores, expected.scores)
        seen += len(expected.scores)
    assert seen > 2
    plain = task.predict_batch(model, {"image": image}, sizes)
    assert all(torch.equal(a.label_map, b.label_map) and b.panoptic is b.instances is None for a, b in zip(found, plain))


@torch.no_grad()
def test_objects_of_stuff_classes():
    task = make_task(vocabulary=vocabulary_of(thing=(False, False, True)), **LOOSE)
    model = build(task)
    without, within = [], []
    for stuff_instances, lists in ((False, without), (True, within)):
        task.cfg.stuff_instances = stuff_instances
        for output in task.predict_batch(model, {"image": photos()}, [(50, 70)] * 2, tasks=("instance",)):
            lists += output.instances.class_ids.tolist()
    assert set(without) <= {2} and set(within) & {0, 1}


# ---- views ----


def scores_of(task, model, image, size):
    """(B, K, H, W) class scores of photos at `size` in the plain way, padding at the model's multiple of 32."""
    output = model.predict(image, regions=False)["semantic"]
    height, width = image.shape[2:]
    padded = (-(-height // 32) * 32, -(-width // 32) * 32)
    maps = []
    for b in range(len(image)):
        masks = upsample_masks(output.mask_logits[b], padded, (height, width))
        maps.append(semantic_maps(classify_masks(masks, output.class_logits[-1][b])))
    return F.interpolate(torch.stack(maps), size, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_flip_and_scales():
    image, size = photos(size=(48, 64)), (70, 90)
    task = make_task(without_regions=True)
    model = build(task)
    post = PostProcess(flip_average=True, scales=(1.0, 1.5), return_scores=True)
    found = task.predict_batch(model, {"image": image}, [size] * 2, post)
    large = F.interpolate(image.float(), (72, 96), mode="bilinear", align_corners=False, antialias=True).round().clamp(0, 255)
    expected = 0
    for photo in (image, large.to(torch.uint8)):
        own = tuple(photo.shape[2:])
        both = scores_of(task, model, photo, own) + scores_of(task, model, photo.flip(-1), own).flip(-1)
        expected = expected + F.interpolate(both, size, mode="bilinear")
    for b in range(2):
        shares = expected[b] / expected[b].sum(0)
        torch.testing.assert_close(found[b].class_scores, shares, atol=1e-4, rtol=1e-3)
        assert (found[b].label_map == shares.argmax(0)).float().mean() > 0.999
    without_scores = task.predict_batch(model, {"image": image}, [size] * 2, dataclasses.replace(post, return_scores=False))
    assert all((a.label_map == b.label_map).float().mean() > 0.999 and b.class_scores is None for a, b in zip(found, without_scores))


@torch.no_grad()
def test_windows():
    """A window as large as the photo changes nothing; smaller ones are averaged where they overlap."""
    image, size = photos(size=(40, 60)), (40, 60)
    task = make_task(without_regions=True)
    model = build(task)
    plain = task.predict_batch(model, {"image": image}, [size] * 2)
    whole = task.predict_batch(model, {"image": image}, [size] * 2, PostProcess(window=60))
    assert all((a.label_map == b.label_map).float().mean() > 0.999 for a, b in zip(plain, whole))
    found = task.predict_batch(model, {"image": image}, [size] * 2, PostProcess(window=40, window_stride=30, return_scores=True))
    left, right = (scores_of(task, model, image[..., start : start + 40], (40, 40)) for start in (0, 20))
    for b in range(2):
        expected = torch.cat([left[b, ..., :20], (left[b, ..., 20:] + right[b, ..., :20]) / 2, right[b, ..., 20:]], -1)
        torch.testing.assert_close(found[b].class_scores, expected / expected.sum(0), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="no more than the window"):
        task.predict_batch(model, {"image": image}, [size] * 2, PostProcess(window=20, window_stride=30))


@torch.no_grad()
def test_refinement_follows_colours():
    """Maps refined by colour end where the photo's colours change."""
    image = torch.zeros(1, 3, 40, 60, dtype=torch.uint8)
    image[..., :33] = 230
    task = make_task(without_regions=True)
    model = build(task)
    found = task.predict_batch(model, {"image": image}, [(80, 120)], PostProcess(refine="pamr", return_scores=True))[0]
    assert found.label_map.shape == (80, 120) and found.class_scores.shape == (3, 80, 120)
    assert (found.class_scores.argmax(0) == found.label_map).float().mean() > 0.99
    with pytest.raises(ValueError, match="refine 'sharpen': the maps of this model can be refined by none"):
        task.predict_batch(model, {"image": image}, [(40, 60)], PostProcess(refine="sharpen"))


@pytest.mark.parametrize("post", [dict(flip_average=True), dict(window=32), dict(scales=(1.0, 2.0)), dict(refine="pamr")])
def test_views_are_for_class_maps_alone(post):
    task = make_task()
    with pytest.raises(ValueError, match="ask for semantic alone instead of semantic,panoptic"):
        task.predict_batch(None, {"image": photos()}, [(50, 70)] * 2, PostProcess(**post), tasks=("semantic", "panoptic"))

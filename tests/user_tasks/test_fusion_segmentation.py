"""The task around Fusioner: sides of a split, pairs, background, windows."""

import numpy as np
import pytest
import torch

from ofaseg.data.folds import FoldError
from ofaseg.evaluation.few_shot import few_shot_scores
from ofaseg.evaluation.postprocess import PostProcess
from tests.models.one_layer import one_layer
from tests.toy import NAMES, write_toy_shards
from tests.toy_fusioner import make_model, make_task

pytestmark = pytest.mark.usefixtures("one_thread")

WITH_BACKGROUND = ("red", "background", "blue")


@pytest.fixture(autouse=True)
def small():
    with one_layer():
        yield


def photos(count, height=32, width=32):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def test_sides_of_a_split(tmp_path):
    assert make_task(tmp_path, NAMES, novel_classes="blue,red").split == ((1,), (0, 2))
    assert make_task(tmp_path, NAMES, novel=("green",)).split == ((0, 2), (1,))
    assert make_task(tmp_path, WITH_BACKGROUND).split == ((0, 2), (0, 2)), "nothing held out: all are trained and tested"
    assert make_task(tmp_path, NAMES, novel_classes="blue", base_classes="green").split == ((1,), (2,))
    with pytest.raises(FoldError, match="--base-classes blue: held out"):
        make_task(tmp_path, NAMES, novel_classes="blue", base_classes="green,blue").split  # noqa: B018
    with pytest.raises(FoldError, match="not in the vocabulary"):
        make_task(tmp_path, NAMES, benchmark="pascal5i").split  # noqa: B018
    with pytest.raises(FoldError, match="--fold 2 of no benchmark"):
        make_task(tmp_path, NAMES, fold=2).split  # noqa: B018
    with pytest.raises(FoldError, match="--novel-classes beside --benchmark pascal5i"):
        make_task(tmp_path, NAMES, benchmark="pascal5i", novel_classes="blue").split  # noqa: B018
    assert make_task(tmp_path, ("Background", "cat", "dog"), novel_classes="dog").split == ((1,), (2,)), "background in any spelling"
    with pytest.raises(FoldError, match="no class 'cyan' to hold out"):
        make_task(tmp_path, NAMES, novel_classes="cyan").split  # noqa: B018


def test_a_fold_is_found_in_the_names_of_the_shards(tmp_path):
    from ofaseg.data.folds import class_names

    names = ("background", *class_names("pascal5i"))
    task = make_task(tmp_path, names, benchmark="pascal5i", fold=2)
    assert [names[k] for k in task.split.novel] == ["diningtable", "dog", "horse", "motorbike", "person"]
    with pytest.raises(FoldError, match="folds 0..3, not 4"):
        make_task(tmp_path, names, benchmark="pascal5i", fold=4).split  # noqa: B018


def test_training_sees_base_classes_and_tests_novel_ones(tmp_path):
    for split in ("train", "val"):
        write_toy_shards(tmp_path, split, 5)
    task = make_task(tmp_path, NAMES, novel_classes="blue", data=str(tmp_path), num_present=2, aug_prob=0.0)
    task.load_dataset("train")
    task.load_dataset("val")
    train, val = task.datasets["train"], task.datasets["val"]
    batch = train.collater([train[k] for k in range(len(train))])
    assert set(batch["net_input"]["class_ids"].flatten().tolist()) == {0, 1} and batch["net_input"]["class_ids"].shape[1] == 2
    assert batch["net_input"]["image"].shape[2:] == (32, 32)
    batch = val.collater([val[k] for k in range(len(val))])
    assert set(batch["net_input"]["class_ids"].flatten().tolist()) == {2} and batch["net_input"]["class_ids"].shape[1] == 1
    base = task.pair_dataset("val", training=False, base=True)
    assert set(base.pairs.classes.tolist()) == {0, 1} and "native_targets" in base.collater([base[0]])


@torch.no_grad()
def test_background_wins_where_no_class_reaches_one_half(tmp_path):
    """Its place in the list does not matter; the other classes are judged as if it were not there."""
    task = make_task(tmp_path, WITH_BACKGROUND)
    model = make_model(task)
    image = photos(2)
    logits = task._output(model, {"image": image}, PostProcess()).class_logits
    alone = model.predict(image=image, text=model.class_embeddings()[[0, 2]]).class_logits
    assert torch.equal(logits[:, [0, 2]], alone) and not logits[:, 1].any()
    found = task.predict_batch(model, {"image": image}, [(32, 32)] * 2)
    expected = torch.cat([torch.zeros(2, 1, 32, 32), alone], 1).argmax(1)
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours.label_map, torch.tensor([1, 0, 2])[theirs])
    plain = make_task(tmp_path, ("red", "blue"))
    both = plain._output(make_model(plain), {"image": image}, PostProcess()).class_logits
    torch.testing.assert_close(both, alone)


@torch.no_grad()
def test_pairs_are_asked_for_their_own_class(tmp_path):
    task = make_task(tmp_path, NAMES)
    model = make_model(task)
    image, class_ids = photos(2), torch.tensor([[2, 0], [1, 2]])
    logits = task.pair_logits(model, {"net_input": {"image": image, "class_ids": class_ids}})
    for b in range(2):
        own = model.predict(image=image[b : b + 1], text=model.class_embeddings()[class_ids[b]]).class_logits
        torch.testing.assert_close(logits[b : b + 1], own, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_original_resolution_goes_through_windows(tmp_path):
    """A photo as large as a window is one; larger ones keep their size; padding does not reach the scores' size."""
    task = make_task(tmp_path, NAMES, test_with_org_resolution=True)
    model = make_model(task)
    same, larger = photos(1), photos(1, 40, 51)
    ids = torch.tensor([[1]])
    whole = model.predict(image=same, class_ids=ids).class_logits
    torch.testing.assert_close(task.pair_logits(model, {"net_input": {"image": same, "class_ids": ids}}), whole, atol=1e-5, rtol=1e-5)
    assert task.pair_logits(model, {"net_input": {"image": larger, "class_ids": ids}}).shape == (1, 1, 40, 51)
    assert task.evaluation_size(40, 51) == (40, 51) and task.post_process().window == 32
    found = task.predict_batch(model, {"image": larger}, [(40, 51)])
    assert found[0].label_map.shape == (40, 51)
    with pytest.raises(ValueError, match="at one scale"):
        task.predict_batch(model, {"image": same}, [(32, 32)], task.post_process(scales=(1.0, 2.0)))


@torch.no_grad()
def test_validation_counts_pairs(tmp_path):
    from types import SimpleNamespace

    from criterions.masked_binary_cross_entropy import MaskedBinaryCrossEntropy

    write_toy_shards(tmp_path, "val", 4)
    task = make_task(tmp_path, NAMES, novel_classes="blue", data=str(tmp_path))
    model = make_model(task)
    data = task.pair_dataset("val", training=False)
    batch = data.collater([data[k] for k in range(len(data))])
    loss, samples, log = task.valid_step(batch, model, MaskedBinaryCrossEntropy(SimpleNamespace(), False))
    logits = task.pair_logits(model, batch)
    scores = few_shot_scores(log["_pairs"].view(6, 3), task.split.novel)
    inter = int(((logits > 0) & (batch["target"] == 1)).sum())
    union = int((((logits > 0) & (batch["target"] >= 0)) | (batch["target"] == 1)).sum())
    assert scores["mIoU"] == pytest.approx(inter / union) and scores["pairs"] == len(data) == int(samples)
    empty = {"nsentences": 0, "bad_rows": ["gone"], "net_input": {}, "id": torch.zeros(0)}
    nothing = task.valid_step(empty, model, None)[2]
    assert not nothing["_pairs"].any() and list(nothing) == sorted(nothing)


def test_a_score_is_the_mean_of_a_whole_fold_or_of_the_classes_of_the_split(tmp_path):
    """FSS-1000 marks the classes of val and of test as novel: those of the other split are no zeros in HSNet's mean."""
    from ofaseg.data.folds import class_names
    from ofaseg.evaluation.few_shot import classes_with_pairs

    counts = torch.zeros(6, 3, dtype=torch.long)
    counts[4, 1], counts[5, 2] = 3, 1
    assert classes_with_pairs(counts) == {1, 2}
    assert make_task(tmp_path, NAMES, novel_classes="red,blue").tested_classes((0, 2), {1, 2}) == [2]
    fold = make_task(tmp_path, class_names("pascal5i"), benchmark="pascal5i")
    assert fold.tested_classes(fold.split.novel, {1}) == [0, 1, 2, 3, 4]


@torch.no_grad()
def test_windows_are_those_asked_for(tmp_path):
    photo, ids = photos(1, 40, 64), torch.tensor([[1]])
    logits = []
    for options in ({}, {"window_stride": 8}, {"window": 48}):
        task = make_task(tmp_path, NAMES, test_with_org_resolution=True, **options)
        logits.append(task.pair_logits(make_model(task), {"net_input": {"image": photo, "class_ids": ids}}))
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@torch.no_grad()
def test_finer_names_make_class_vectors(tmp_path):
    import json

    (tmp_path / "names.json").write_text(json.dumps({"green": ["blue"], "red": ["red", "green"], "blue": ["blue"]}))
    task = make_task(tmp_path, NAMES, subclasses=str(tmp_path / "names.json"), fusion="mean")
    model = make_model(task)
    names = model.class_embeddings()
    task.give_classes(model)
    expected = torch.stack([torch.nn.functional.normalize(names[0] + names[1], dim=0), names[2], names[2]])
    torch.testing.assert_close(model.class_embeddings(), expected)
    torch.testing.assert_close(model.name_embeddings(), names)  # the names themselves are kept apart
    found = model.predict(image=photos(1)).class_logits
    torch.testing.assert_close(found, model.predict(image=photos(1), text=expected).class_logits)
    from ofaseg.models.layers.subclass_fusion import SubclassPrompts

    with pytest.raises(ValueError, match="fusion softmax: Fusioner takes one vector per class; use mean or superclass_mean"):
        model.set_subclasses(SubclassPrompts(task.subclass_prompts.prompts, "softmax"))

"""Held-out classes: the published folds, other spellings and other numberings, and splits of one's own."""

import json

import pytest

from ofaseg.data.folds import FoldError, class_ids, class_names, fold_split, held_out, own_split
from ofaseg.vocabulary import ClassVocabulary

PASCAL = {
    0: "aeroplane bicycle bird boat bottle",
    1: "bus car cat chair cow",
    2: "diningtable dog horse motorbike person",
    3: "pottedplant sheep sofa train tvmonitor",
}
COCO_0 = (
    "person aeroplane boat parkingmeter dog elephant backpack suitcase sportsball skateboard wineglass spoon sandwich hotdog chair "
    "diningtable mouse microwave refrigerator scissors"
)


def vocabulary(benchmark, natural=False, **more):
    return ClassVocabulary(("background", *class_names(benchmark, natural)), **more)


@pytest.mark.parametrize("fold", range(4))
def test_pascal_folds_are_the_published_blocks(fold):
    classes = vocabulary("pascal5i")
    split = fold_split(classes, "pascal5i", fold)
    assert split.novel == tuple(range(5 * fold + 1, 5 * fold + 6)), "with background as class 0, ids are the published 1..20"
    assert [classes.names[k] for k in split.novel] == PASCAL[fold].split()
    assert sorted(split.base + split.novel) == list(range(1, 21))


def test_coco_folds_are_every_fourth_class():
    classes = vocabulary("coco20i")
    splits = [fold_split(classes, "coco20i", fold) for fold in range(4)]
    assert [classes.names[k] for k in splits[0].novel] == COCO_0.split()
    assert sorted(k for split in splits for k in split.novel) == list(range(1, 81))
    assert all(len(split.base) == 60 and not set(split.base) & set(split.novel) for split in splits)
    assert held_out("coco20i", 3) == tuple(range(3, 80, 4))


def test_folds_of_the_data_pack(real_data):
    """An independent list of the names; its COCO names are the natural ones."""
    folds = json.loads((real_data / "splits" / "fold_classes.json").read_text())
    for benchmark, natural in (("pascal5i", False), ("coco20i", True)):
        names = class_names(benchmark, natural)
        for fold in range(4):
            assert [names[k] for k in held_out(benchmark, fold)] == folds[benchmark][str(fold)]


@pytest.mark.parametrize("fold", [4, -1, True, "0", None])
def test_a_fold_out_of_range_is_refused(fold):
    with pytest.raises(FoldError, match="pascal5i has the folds 0..3, not"):
        held_out("pascal5i", fold)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(FoldError, match="unknown benchmark 'pascal'; choose from pascal5i, coco20i"):
        class_names("pascal")


def test_classes_are_found_by_any_spelling_in_any_order():
    """The numbers are those of the vocabulary, whatever its order; extra classes stay out."""
    names = ["sky", *reversed(class_names("pascal5i", natural=True))]
    names[names.index("dining table")], names[names.index("tv monitor")] = "table", "monitor"
    classes = ClassVocabulary(tuple(names))
    split = fold_split(classes, "pascal5i", 3)
    assert {classes.names[k] for k in split.novel} == {"potted plant", "sheep", "sofa", "train", "monitor"}
    assert len(split.base) == 15 and 0 not in split.base
    assert class_ids(classes, "pascal5i")[0] == names.index("aeroplane")


def test_classes_that_are_missing_or_doubled_are_named():
    message = r"pets: 18 of the 20 classes of pascal5i are not in the vocabulary \(aeroplane, bicycle, .*own novel"
    with pytest.raises(FoldError, match=message):
        class_ids(ClassVocabulary(("cat", "dog"), source="pets"), "pascal5i")
    with pytest.raises(FoldError, match="'sofa' and 'couch' are one class of pascal5i"):
        class_ids(ClassVocabulary((*class_names("pascal5i"), "couch")), "pascal5i")


def test_own_split_by_marks_and_by_names():
    names = ("background", "cat", "dog", "cow")
    marked = ClassVocabulary(names, novel=(False, False, True, False))
    assert own_split(marked) == ((1, 3), (2,))
    assert own_split(marked, ["cow", "cat"]) == ((2,), (1, 3)), "names come before marks"
    for novel, message in (((), "no class is marked novel"), (["wolf"], "no class 'wolf' to hold out; the classes are background, cat")):
        with pytest.raises(FoldError, match=message):
            own_split(ClassVocabulary(names), novel)
    with pytest.raises(FoldError, match="no base class is left"):
        own_split(ClassVocabulary(names), ["cat", "dog", "cow"])
    with pytest.raises(FoldError, match="no novel class is left"):
        own_split(ClassVocabulary(names), ["background"])

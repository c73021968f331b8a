"""Other names for the same classes: what each naming gives the model, and what stands for which class."""

import json

import pytest

from ofaseg.evaluation import namings
from ofaseg.vocabulary import ClassVocabulary, VocabularyError


def vocabulary(*names):
    return ClassVocabulary(names, source="test")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Door-stuff", "door"), ("floor_other-merged", "floor"), ("cabinet (furniture)", "cabinet"), ("hair drier", "hair drier"),
        ("playing-field", "playing field"), ("other", "other"), ("(x)", "(x)"), ("traffic light [red] ", "traffic light"),
    ],
)  # fmt: skip
def test_plain_names(name, expected):
    assert namings.plain_name(name) == expected


def test_plain_names_that_two_classes_would_share_stay_official():
    naming = namings.plain(vocabulary("Water-other", "water", "sky-other", "Sky-stuff", "wall-brick"))
    assert naming.names == ("Water-other", "water", "sky-other", "Sky-stuff", "wall brick")
    assert naming.classes == (0, 1, 2, 3, 4) and naming.renamed == 1


def test_the_first_synonym_that_differs_and_is_nobody_else_s():
    table = {"cell-phone": ["Cell Phone", "mobile"], "tv": ["screen", "telly"], "monitor": ["screen"], "cat": ["tv", "kitty"]}
    naming = namings.synonyms(vocabulary("cell-phone", "tv", "monitor", "cat", "dog", "background"), table | {"background": ["void"]})
    assert naming.names == ("mobile", "telly", "monitor", "kitty", "dog", "background") and naming.renamed == 3


def test_subclasses_stand_for_their_class():
    table = {"cat": ["Tabby", "tabby", "pet"], "dog": ["poodle", "pet", "cat"], "background": ["wall"]}
    naming = namings.subclasses(vocabulary("background", "cat", "dog", "car"), table)
    assert len(naming.names) == len(naming.classes) == 4
    assert dict(zip(map(str.lower, naming.names), naming.classes)) == {"background": 0, "tabby": 1, "poodle": 2, "car": 3}
    assert naming.renamed == 2


def test_distractors_follow_the_classes_and_stand_for_none():
    naming = namings.with_distractors(vocabulary("a", "b"), ["x", "y", "z"], 2)
    assert naming.names == ("a", "b", "x", "y") and naming.classes == (0, 1, 2, 2)
    with pytest.raises(VocabularyError, match="3 are left"):
        namings.with_distractors(vocabulary("a"), ["x", "y", "z"], 4)


def test_distractors_do_not_speak_of_a_class():
    words = ["Brick", "wall", "buses", "mouse", "anchor", "kitty", "anchor", "Tabby-cat", "drum"]
    usable = namings.usable_distractors(words, vocabulary("wall-brick", "bus", "cat"), [{"cat": ["kitty", "tabby cat"]}], seed=1)
    assert sorted(usable) == ["anchor", "drum", "mouse"]
    many = [namings.usable_distractors(namings.common_nouns(), vocabulary("cat"), [], seed) for seed in (1, 1, 2)]
    assert many[0] == many[1] != many[2] and sorted(many[0]) == sorted(many[2]) and len(many[0]) > 300


def test_a_permutation_keeps_names_with_their_classes():
    start = namings.Naming("x", tuple("abcdef"), (0, 0, 1, 2, 3, 4))
    for seed in range(5):
        found = namings.permuted(start, seed)
        assert sorted(zip(found.names, found.classes)) == sorted(zip(start.names, start.classes)) and found.names != start.names
        assert found == namings.permuted(start, seed)
    assert namings.permuted(namings.Naming("x", ("a", "b"), (0, 1)), 0).names in (("b", "a"),)


def test_files_of_names(tmp_path):
    (tmp_path / "a.txt").write_text("0:invalid_class_id\n5:Wall-other,wall,bricks\n1:background,table,cup\n9:tv monitor, tv ,tvmonitor\n")
    found = namings.read_names(tmp_path / "a.txt", vocabulary("wall", "table", "tvmonitor", "sea"))
    assert found == {"wall": ["wall", "bricks"], "table": ["background", "cup"], "tvmonitor": ["tv monitor", "tv"]}
    (tmp_path / "a.json").write_text(json.dumps({"Potted_Plant": ["fern "], "dog": ["poodle"]}))
    assert namings.read_names(tmp_path / "a.json", vocabulary("potted-plant", "cat")) == {"potted-plant": ["fern "]}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "0:wall\nwall,walls\n", "line 2"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[]", "not a list"),
        ("a.json", '{"wall": "brick"}', "class 'wall'"),
        ("a.json", '{"cat": ["kitty"]}', "none of the 1 classes"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(VocabularyError, match=message):
        namings.read_names(tmp_path / name, vocabulary("wall"))


def test_published_synonyms_are_read(real_data):
    lists = real_data / "class_lists"
    names = vocabulary(*(lists / "coco_stuff171.txt").read_text().splitlines())
    table = namings.read_names(lists / "prompt_synonyms" / "coco_stuff.txt", names)
    naming = namings.synonyms(names, table)
    assert naming.names[0] == "child" and naming.names[names.names.index("cell phone")] == "mobile" and len(table) == 97
    usable = namings.usable_distractors(namings.common_nouns(), names, [table], 1)
    assert len(namings.with_distractors(names, usable, 200).names) == 371

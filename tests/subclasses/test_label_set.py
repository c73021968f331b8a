import json

import pytest

from ofaseg.subclasses.cleaning import clean_name, clean_names
from ofaseg.subclasses.label_set import ABOUT, LabelSet, LabelSetError, load_label_set

CONTENT = {
    "dining table": [" Picnic_table", "SUV (Sport Utility (big) Vehicle)", "picnic  TABLE ", "desk"],
    "cat": ["tabby ", "Tabby", "lynx"],
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="set.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "name, cleaned",
    [
        ("Commercial_Jetliner", "Commercial Jetliner"),
        ("SUV (Sport Utility Vehicle)", "SUV"),
        ("Electric Bike (E-bike [new])  XL ", "Electric Bike XL"),
        ("(E-bike)", ""),
        ("half (open", "half (open"),
        (" \t ", ""),
        ("cafe\u0301 chair", "caf\u00e9 chair"),
    ],
)
def test_clean_name(name, cleaned):
    assert clean_name(name) == cleaned


def test_clean_names_keeps_the_order_and_tells_every_change():
    kept, changes = clean_names("cat", ["b", "A_x", "B ", "(?)", "a x"])
    assert kept == ("b", "A x")
    assert [(change.before, change.after) for change in changes] == [("A_x", "A x"), ("B ", ""), ("(?)", ""), ("a x", "")]
    assert str(changes[1]) == "cat: 'B ' taken out: repeats 'b'"
    assert clean_names("cat", ["b", "B", "b"], keep_duplicates=True)[0] == ("b", "B", "b")


def test_loading_cleans_and_sorts_by_the_class_list(write):
    label_set = load_label_set(write(CONTENT), ["cat", "Dining_Table"])
    assert list(label_set.items()) == [("cat", ("tabby", "lynx")), ("Dining_Table", ("Picnic table", "SUV", "desk"))]
    assert label_set.flat == (["tabby", "lynx", "Picnic table", "SUV", "desk"], ["cat"] * 2 + ["Dining_Table"] * 3)
    reordered = {key: CONTENT[key] for key in reversed(CONTENT)}
    assert list(load_label_set(write(reordered), ["cat", "Dining_Table"]).items()) == list(label_set.items())
    assert list(load_label_set(write(CONTENT))) == ["dining table", "cat"]


def test_raw_strings_and_duplicates_on_request(write):
    path = write(CONTENT)
    assert {name: list(names) for name, names in load_label_set(path, clean=False).items()} == CONTENT
    assert load_label_set(path, keep_duplicates=True)["cat"] == ("tabby", "Tabby", "lynx")


def test_saving_and_provenance(tmp_path, write):
    label_set = LabelSet({"cat": ["tabby", "Löwe"], "dog": ("pug",)}, about={"model": "toy", "date": "2024-01-01"})
    label_set.save(tmp_path / "out.json")
    again = load_label_set(tmp_path / "out.json", ["dog", "cat"])
    assert again == label_set and again.about == label_set.about and list(again) == ["dog", "cat"]
    assert list(json.loads((tmp_path / "out.json").read_text())) == [ABOUT, "cat", "dog"]
    LabelSet(label_set).save(tmp_path / "plain.json")
    assert json.loads((tmp_path / "plain.json").read_text()) == {"cat": ["tabby", "Löwe"], "dog": ["pug"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "plain.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    LabelSet({"cat": ["tabby"]}).save(tmp_path / "out.json")
    with pytest.raises(TypeError):
        LabelSet({"dog": ["pug"]}, about={"date": object()}).save(tmp_path / "out.json")
    assert load_label_set(tmp_path / "out.json") == {"cat": ("tabby",)} and len(list(tmp_path.iterdir())) == 1


def test_missing_and_extra_classes_are_named_in_one_message(write):
    path = write(CONTENT | {"table": ["desk"]})
    with pytest.raises(LabelSetError) as caught:
        load_label_set(path, ["cat", "dog", "dining table", "sea lion"])
    assert f"{path}: has no entry for 'dog', 'sea lion'; has classes that are not asked for: 'table'; " in str(caught.value)
    with pytest.raises(LabelSetError, match="not asked for: 'dining table', 'table'"):
        load_label_set(path, ["cat"])


def test_classes_can_be_renamed(write):
    path = write({"table": ["desk"], "cat": ["lynx"]})
    assert load_label_set(path, ["diningtable", "cat"], renames={"table": "diningtable"}) == {"diningtable": ("desk",), "cat": ("lynx",)}
    with pytest.raises(LabelSetError, match="has no class 'tabel' to rename; its classes: 'table', 'cat'"):
        load_label_set(path, renames={"tabel": "diningtable"})
    with pytest.raises(LabelSetError, match="two classes have one name"):
        load_label_set(path, renames={"table": "cat"})


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1], "holds a list"),
        ({}, "holds no class"),
        ({ABOUT: {"model": "m"}}, "holds no class"),
        ({"cat": []}, "class 'cat' has an empty list"),
        ({"cat": "tabby"}, "read letter by letter"),
        ({"cat": {"a": 1}}, "class 'cat' holds a dict"),
        ({"cat": ["tabby", 3]}, "class 'cat', name 2: '3' is no string"),
        ({"cat": ["tabby", " "]}, "class 'cat', name 2: ' ' is no name"),
        ({"cat": ["(?)"]}, "class 'cat' has no name left after cleaning"),
        ({" ": ["tabby"]}, "a class without a name"),
        ('{"cat": ["a"], "cat": ["b"]}', "'cat' stands twice"),
        ({"cat": ["a"], "Cat": ["b"]}, "'cat' and 'Cat' are one class"),
        ({"cat": [], "dog": "pug"}, "'cat' has an empty list.*; class 'dog' holds the string"),
    ],
)
def test_what_is_no_label_set(write, content, message):
    path = write(content)
    with pytest.raises(LabelSetError, match=message) as caught:
        load_label_set(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(LabelSetError, match="no such label set"):
        load_label_set(tmp_path / "missing.json")
    (tmp_path / "set.json").write_bytes(b"\xff\xfe")
    with pytest.raises(LabelSetError, match="not a UTF-8 text file"):
        load_label_set(tmp_path / "set.json")
    with pytest.raises(LabelSetError, match="class 'cat' has no subclass"):
        LabelSet({"cat": ()})


@pytest.mark.parametrize(
    "name, classes, subclasses, duplicates", [("pascal_voc", 21, 105, 0), ("pascal_context", 60, 296, 3), ("coco_stuff", 81, 401, 0)]
)
def test_published_files_load(real_data, name, classes, subclasses, duplicates):
    """Counts as in the digest of the published sets."""
    path = real_data / "llm_subclasses" / f"{name}_top5.json"
    raw, cleaned, parity = load_label_set(path, clean=False), load_label_set(path), load_label_set(path, keep_duplicates=True)
    assert raw == {key: tuple(value) for key, value in json.loads(path.read_text()).items()}
    assert [len(raw), len(raw.flat[0]), len(parity.flat[0])] == [classes, subclasses, subclasses]
    assert len(cleaned.flat[0]) == subclasses - duplicates
    assert not any(set(text) & set("_()") or text != text.strip() for text in cleaned.flat[0])


def test_published_voc_names_against_the_class_list(real_data):
    names = (real_data / "class_lists" / "voc21.txt").read_text().split("\n")[:21]
    path = real_data / "llm_subclasses" / "pascal_voc_top5.json"
    missing, extra = "'diningtable', 'pottedplant', 'tvmonitor'", "'table', 'plant', 'monitor'"
    with pytest.raises(LabelSetError, match=f"no entry for {missing}; has classes that are not asked for: {extra}; "):
        load_label_set(path, names)
    renames = {"table": "diningtable", "plant": "pottedplant", "monitor": "tvmonitor"}
    label_set = load_label_set(path, names, renames=renames)
    assert list(label_set) == names and label_set["car"][1] == "SUV" and label_set["background"][0] == "Natural background"

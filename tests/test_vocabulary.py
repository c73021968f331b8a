import json

import pytest

from ofaseg.vocabulary import ClassVocabulary, VocabularyError, default_palette, parse_class_names, resolve_vocabulary


def test_names_from_a_comma_list_keep_order_and_inner_blanks():
    assert parse_class_names("cat, concrete wall ,grass") == ("cat", "concrete wall", "grass")


def test_names_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("Straße\n\n猫\nconcrete wall\n", encoding="utf-8")
    assert parse_class_names(str(path)) == ("Straße", "猫", "concrete wall")


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat,,dog", "class 1 has an empty name"),
        ("cat, dog, cat", "'cat' stands twice"),
        ("no/such/file.txt", "not found"),
        ("", "empty name"),
    ],
)
def test_bad_lists_are_named(text, message):
    with pytest.raises(VocabularyError, match=message):
        parse_class_names(text)


def test_a_binary_file_is_not_a_class_list(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(VocabularyError, match="UTF-8"):
        parse_class_names(str(path))


def test_json_round_trip(tmp_path):
    vocabulary = ClassVocabulary(("a", "b c"), thing=(True, False), novel=(False, True), source="here", extra={"num_rows": {"val": 3}})
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(vocabulary.to_json()))
    loaded = ClassVocabulary.from_json(json.loads(path.read_text()))
    assert loaded == vocabulary
    assert loaded.extra == {"num_rows": {"val": 3}}


def test_ignore_label_leaves_room_for_the_classes():
    assert ClassVocabulary(tuple(map(str, range(255)))).ignore_label == 255
    assert ClassVocabulary(tuple(map(str, range(256)))).ignore_label == 65535
    with pytest.raises(VocabularyError, match="also the stored value of a class"):
        ClassVocabulary(("a", "b"), ignore_label=1)


def test_lists_of_another_length_are_refused():
    with pytest.raises(VocabularyError, match="1 entries in 'thing' for 2 class names"):
        ClassVocabulary(("a", "b"), thing=(True,))


def test_palette_colours_differ():
    palette = default_palette(171)
    assert len(set(palette)) == 171
    assert all(0 <= channel <= 255 for colour in palette for channel in colour)


def test_two_lists_never_disagree_silently():
    shards = ClassVocabulary(("cat", "dog"), source="vocabulary.json")
    assert resolve_vocabulary("", shards) is shards
    assert resolve_vocabulary("cat, dog", shards).names == ("cat", "dog")
    with pytest.raises(VocabularyError, match="first at class 0: 'dog' against 'cat'"):
        resolve_vocabulary("dog, cat", shards)
    with pytest.raises(VocabularyError, match=r"3 classes, the shards have 2 \(cat, dog\).*--rename-classes"):
        resolve_vocabulary("a, b, c", shards)
    renamed = resolve_vocabulary("kitten, puppy", shards, rename_classes=True)
    assert renamed.names == ("kitten", "puppy") and renamed.palette == shards.palette
    again = ClassVocabulary.from_json(renamed.to_json()).renamed(("kitty", "doggy"))
    assert renamed.renames(shards) and again.renames(shards), "the words of the shards are kept"
    assert not shards.renames(shards) and not renamed.renames(renamed) and shards.renamed(["cat", "dog"]) is shards
    with pytest.raises(VocabularyError, match="no class names"):
        resolve_vocabulary("", None)


@pytest.mark.parametrize("name", ["clases.names", "my_classes.LST", "nothere.txt", "a/b"])
def test_a_missing_class_list_is_not_one_class(name):
    with pytest.raises(VocabularyError, match="class list file not found"):
        parse_class_names(name)
    assert parse_class_names("e.coli") == ("e.coli",)

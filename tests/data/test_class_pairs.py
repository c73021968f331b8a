"""Pairs of photo and class: present classes and their file, published lists, subsets of the test."""

import gzip
import json
import os

import numpy as np
import pytest

from ofaseg.data import codec, kept_arrays, present_classes
from ofaseg.data.class_pairs import PairChoice, choose_pairs, subset_of_pairs
from ofaseg.data.folds import ClassSplit, FoldError, class_names, fold_split, held_out, own_split
from ofaseg.data.pair_lists import published_pairs, read_pair_file, rows_of_photos
from ofaseg.data.present_classes import PresentClasses
from ofaseg.data.shards import ShardError, ShardReader, ShardWriter
from ofaseg.vocabulary import ClassVocabulary

NAMES = ("background", "cat", "dog", "cow")
VOCABULARY = ClassVocabulary(NAMES, novel=(False, False, True, False), source="pets")
ROWS = {"b": [1, 2], "a": [2], "c": [0, 255], "d": [3, 1, 2]}
"""Row id -> the values of its label map, in the order of the shards."""


def write(root, split="val", rows=ROWS, format="tsv", vocabulary=VOCABULARY):
    with ShardWriter(str(root), split, vocabulary, ["image", "label_map", "id"], format=format) as writer:
        for name, values in rows.items():
            labels = np.tile(np.array([-1 if v == 255 else v for v in values], np.int32), (3, 1))
            image = codec.encode_image(np.zeros((*labels.shape, 3), np.uint8))
            writer.write({"id": name, "image": image, "label_map": codec.encode_label_map(labels, vocabulary)})
    return ShardReader.for_split(str(root), split)


def present_of(pairs, ids=None):
    """`PresentClasses` of {row id: class ids}."""
    classes = [np.asarray(sorted(values), np.int32) for values in pairs.values()]
    return PresentClasses(list(pairs), np.cumsum([0, *map(len, classes)]), np.concatenate(classes))


# ---- present classes ----


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_classes_of_every_row_are_found_once(tmp_path, monkeypatch, format):
    reader = write(tmp_path, format=format)
    found = present_classes.present_classes(reader, VOCABULARY)
    assert found.ids == list(ROWS) and [found.of_row(row).tolist() for row in range(4)] == [[1, 2], [2], [0], [1, 2, 3]]
    assert found.rows().tolist() == [0, 0, 1, 2, 3, 3, 3] and not found.unreadable
    assert (tmp_path / "val.classes.npz").is_file()
    monkeypatch.setattr(present_classes, "_search", None)
    again = present_classes.present_classes(ShardReader.for_split(str(tmp_path), "val"), VOCABULARY)
    assert again.ids == found.ids and np.array_equal(again.classes, found.classes) and np.array_equal(again.starts, found.starts)


@pytest.mark.parametrize("change", ["rewritten", "same size", "renumbered", "damaged", "empty", "pickled"])
def test_a_file_that_does_not_fit_is_made_again(tmp_path, change):
    present_classes.present_classes(write(tmp_path), VOCABULARY)
    vocabulary, expected, path = VOCABULARY, [[1, 2], [2], [0], [1, 2, 3]], tmp_path / "val.classes.npz"
    if change == "rewritten":
        write(tmp_path, rows={"x": [3]})
        expected = [[3]]
    elif change == "same size":
        shard = next(tmp_path.glob("val-*.tsv"))
        times = os.stat(shard)
        write(tmp_path, rows={**ROWS, "a": [1]})
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
        expected[1] = [1]
    elif change == "renumbered":
        vocabulary = ClassVocabulary(NAMES[1:], label_offset=1, ignore_label=0)
        expected = [[0, 1], [1], [], [0, 1, 2]]
    elif change == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif change == "pickled":
        np.savez(path, key=np.array([{}], dtype=object))
    else:
        path.write_bytes(b"")
    for _ in range(2):
        found = present_classes.present_classes(ShardReader.for_split(str(tmp_path), "val"), vocabulary)
        assert [found.of_row(row).tolist() for row in range(len(found))] == expected


def test_a_folder_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    reader = write(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kept_arrays, "atomic_write", refuse)
    assert len(present_classes.present_classes(reader, VOCABULARY)) == 4 and not (tmp_path / "val.classes.npz").exists()


def break_label_map(root, row, text="bm90IGEgbWFw"):
    path = next(root.glob("val-*.tsv"))
    lines = path.read_text().splitlines(keepends=True)
    fields = lines[row].split("\t")
    lines[row] = "\t".join([fields[0], text, *fields[2:]])
    path.write_text("".join(lines))


@pytest.mark.parametrize("text", ["bm90IGEgbWFw", ""])
def test_damaged_rows_cost_no_others(tmp_path, caplog, text):
    """Neither at the first search nor from the file; the message names the row."""
    write(tmp_path)
    break_label_map(tmp_path, 1, text)
    for _ in range(2):
        caplog.clear()
        found = present_classes.present_classes(ShardReader.for_split(str(tmp_path), "val"), VOCABULARY)
        assert list(found.unreadable) == [1] and "1 of 4 rows are left out" in caplog.text and "row 1, column label_map" in caplog.text
        assert [found.of_row(row).tolist() for row in range(4)] == [[1, 2], [], [0], [1, 2, 3]]
    assert chosen(found, own_split(VOCABULARY)) == [("b", 2), ("d", 2)]
    with pytest.raises(ShardError, match="row 1, column label_map"):
        chosen(found, own_split(VOCABULARY), skip_bad=False)
    for row in range(4):
        break_label_map(tmp_path, row, text)
    with pytest.raises(ShardError, match="no label map of 4 rows can be read, the first: .*row 0, column label_map"):
        present_classes.present_classes(ShardReader.for_split(str(tmp_path), "val"), VOCABULARY)


# ---- pairs ----


def chosen(present, split, training=False, vocabulary=VOCABULARY, **choice):
    pairs = choose_pairs(present, vocabulary, split, PairChoice(**choice), training)
    return [(present.ids[row], int(k)) for row, k in zip(pairs.rows, pairs.classes)]


def test_pairs_of_masks_are_all_of_one_side(tmp_path):
    present, split = present_classes.present_classes(write(tmp_path), VOCABULARY), own_split(VOCABULARY)
    assert chosen(present, split) == [("a", 2), ("b", 2), ("d", 2)]
    assert chosen(present, split, training=True) == [("b", 1), ("d", 1), ("d", 3)]
    with pytest.raises(ShardError, match="the label maps: no pair of a novel class is left"):
        chosen(present_of({"a": [1]}), split)


def test_own_list_by_class_ids(tmp_path, caplog):
    present, split = present_of({"b": [1, 2], "a": [2]}), own_split(VOCABULARY)
    path = tmp_path / "pairs.txt"
    path.write_text("b__2\n\na__02\nb__2")
    assert chosen(present, split, source="list", lists=str(path)) == [("a", 2), ("b", 2)], "each once, also the last line"
    path.write_text("b__2\nx__2\n")
    assert chosen(present, split, source="list", lists=str(path)) == [("b", 2)]
    assert "photos of 1 of 2 pairs are not in the shards, the first is 'x'; they are left out" in caplog.text
    with pytest.raises(ShardError, match="photos of 1 of 2 pairs are not in the shards"):
        chosen(present, split, source="list", lists=str(path), skip_bad=False)
    path.write_text("b__1\n")
    with pytest.raises(ShardError, match="no pair of a novel class is left"):
        chosen(present, split, source="list", lists=str(path))
    path.write_text("b__1\nb__2\n")
    assert chosen(present, split, source="list", lists=str(path)) == [("b", 2)], "one file for training and tests"
    assert chosen(present, split, training=True, source="list", lists=str(path)) == [("b", 1)]
    with pytest.raises(FoldError, match="class 1 of photo 'b' is neither base nor novel"):
        chosen(present, split._replace(base=(3,)), source="list", lists=str(path))
    path.write_text("b__9\n")
    with pytest.raises(ShardError, match="class number 9 of photo 'b', but there are 4 classes"):
        chosen(present, split, source="list", lists=str(path))
    with pytest.raises(FoldError, match="source of pairs is 'both'; choose from masks, official, hsnet, list"):
        PairChoice("both")
    with pytest.raises(FoldError, match="official lists are those of a benchmark"):
        PairChoice("official")


def test_lists_that_do_not_fit_the_label_maps(tmp_path, caplog):
    path = tmp_path / "pairs.txt"
    path.write_text("a__2\nb__2\n")
    assert chosen(present_of({"a": [1], "b": [2]}), own_split(VOCABULARY), source="list", lists=str(path)) == [("a", 2), ("b", 2)]
    assert "1 of 2 pairs do not fit their label maps, the first: 'a' shows no 'dog'" in caplog.text
    with pytest.raises(ShardError, match="not one of the 2 pairs fits its label map"):
        chosen(present_of({"a": [1], "b": [1]}), own_split(VOCABULARY), source="list", lists=str(path))


@pytest.mark.parametrize(
    "content, message",
    [
        ("a_1\n", "line 1 is 'a_1', not <photo id>__<class number from 0>"),
        ("", "no pair in the list"),
        ('{"1": 5}', "entry '1' is not a class number with a list of photos"),
        ('{"cat": [5]}', "entry 'cat' is not a class number"),
        ('{"1": [5.5]}', "photo 5.5 is neither a number nor a file name"),
        ('{"1": [5', "not valid JSON"),
        (b"\x1f\x8b\x08broken", "cannot be read as text or JSON"),
        (b"\x80\x04\xff\xfe", "cannot be read as text or JSON"),
    ],
)
def test_damaged_lists_are_named(tmp_path, content, message):
    path = tmp_path / "list"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ShardError, match=f"{path}: {message}"):
        read_pair_file(path)


def test_photos_of_coco_are_found_by_their_numbers():
    ids = ["COCO_val2014_000000000009", "000000000025", "", "2007_000032"]
    photos = ["COCO_val2014_000000000025", "COCO_train2014_000000000009", "2007_000032", "000032", "COCO_val2014_000000000001"]
    assert rows_of_photos(ids, photos) == [1, 0, 3, None, None]


# ---- published lists ----


def write_lists(root, fold=0, extra=""):
    """Lists of the published sizes, whose photos are made up."""
    sizes = {0: 2286, 1: 3425, 2: 5883, 3: 2086}
    for number, count in sizes.items():
        lines = [f"p{number}_{k}__{5 * number + k % 5 + 1:02d}" for k in range(count)]
        (root / "trn").mkdir(exist_ok=True)
        (root / "trn" / f"fold{number}.txt").write_text("\n".join(lines) + extra)


def test_training_pairs_are_those_of_the_other_folds(tmp_path):
    """All of them: the last line counts although no line break ends it."""
    write_lists(tmp_path)
    listed = published_pairs("pascal5i", "hsnet", tmp_path, training=True, fold=1)
    assert len(listed.pairs) == 2286 + 5883 + 2086 and not {k for _, k in listed.pairs} & set(held_out("pascal5i", 1))
    assert ("p0_2285", 2285 % 5) in listed.pairs


def test_lists_of_two_origins_are_never_mixed(tmp_path):
    write_lists(tmp_path)
    with pytest.raises(
        ShardError, match="2286 pairs, the official list of pascal5i has 2885: they are those of the hsnet list; choose 'hsnet'"
    ):
        published_pairs("pascal5i", "official", tmp_path, training=True, fold=1)
    write_lists(tmp_path, extra="\nmore__01")
    with pytest.raises(ShardError, match="2287 pairs, the hsnet list of pascal5i has 2286: copy the list again"):
        published_pairs("pascal5i", "hsnet", tmp_path, training=True, fold=1)


def test_lists_that_are_missing_or_pickled_are_named(tmp_path):
    with pytest.raises(ShardError, match="no hsnet list of pascal5i, fold 0; expected .*pascal5i/val/fold0.txt or "):
        published_pairs("pascal5i", "hsnet", tmp_path, training=False, fold=0)
    (tmp_path / "coco" / "val").mkdir(parents=True)
    (tmp_path / "coco" / "val" / "fold2.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ShardError, match="fold2.pkl: a pickled list, which is not read because it can run code; save .* as JSON"):
        published_pairs("coco20i", "official", tmp_path, training=False, fold=2)
    with pytest.raises(ShardError, match="no such folder of official lists"):
        published_pairs("coco20i", "official", "", training=False, fold=2)


PASCAL_SIZES = {"official": (12670, 11739, 9026, 13230), "hsnet": (11394, 10255, 7797, 11594)}
COCO_TRAIN, COCO_VAL = (95476, 133927, 141054, 141016), (35783, 17912, 14563, 14315)


@pytest.mark.parametrize("whose", ["official", "hsnet"])
@pytest.mark.parametrize("fold", range(4))
def test_published_sizes_of_pascal(real_data, whose, fold):
    """The official code uses three training pairs fewer, for it loses the last line of each list."""
    train = published_pairs("pascal5i", whose, real_data / "splits", True, fold).pairs
    test = published_pairs("pascal5i", whose, real_data / "splits", False, fold).pairs
    assert len(train) == PASCAL_SIZES[whose][fold] and len(test) == (346, 451, 725, 346)[fold]
    assert {k for _, k in test} == set(held_out("pascal5i", fold)) and not {k for _, k in train} & set(held_out("pascal5i", fold))
    assert not {photo for photo, _ in train} & {photo for photo, _ in test}


@pytest.mark.parametrize("fold", range(4))
def test_published_sizes_of_coco(real_data, fold):
    train = published_pairs("coco20i", "official", real_data / "splits", True, fold).pairs
    test = published_pairs("coco20i", "hsnet", real_data / "splits", False, fold).pairs
    assert (len(train), len(test)) == (COCO_TRAIN[fold], COCO_VAL[fold])
    photos = (62040, 74381, 73035, 73808)[fold], (26052, 15305, 13138, 12640)[fold]
    assert (len({photo for photo, _ in train}), len({photo for photo, _ in test})) == photos
    assert {k % 4 for _, k in test} == {fold} and {k % 4 for _, k in train} == set(range(4)) - {fold}
    assert test[0][0].startswith("COCO_val2014_") and train[0][0].startswith("COCO_train2014_")


def test_the_first_thousand_pairs_of_coco(real_data):
    """Fold 0 ends at the person of photo 15956, and 551 of its pairs are persons."""
    pairs = published_pairs("coco20i", "official", real_data / "splits", False, 0).pairs
    first = subset_of_pairs(pairs, "first1000", "coco20i")
    assert len(first) == 1000 and first[-1] == ("COCO_val2014_000000015956", 0)
    assert sum(k == 0 for _, k in first) == 551 and sum(k == 12 for _, k in first) == 2
    toasters = subset_of_pairs(published_pairs("coco20i", "official", real_data / "splits", False, 2).pairs, "first1000")
    assert sum(k == 70 for _, k in toasters) == 1 and sum(k == 78 for _, k in toasters) == 2


# ---- subsets ----

MADE_UP = [(f"{name}{k}", k) for k in (4, 0, 8) for name in ("q", "b", "z", "a", "m")]


def test_all_and_first_are_sorted():
    assert subset_of_pairs(MADE_UP, "all") == sorted(MADE_UP)
    many = [(f"{k % 700:04d}", k // 700) for k in range(1400)][::-1]
    assert subset_of_pairs(many, "first1000") == sorted(many)[:1000]


@pytest.mark.parametrize("subset, supports", [("hsnet1000", 1), ("lseg1000", 0)])
def test_drawn_episodes_follow_the_published_draws(subset, supports):
    """Written with `numpy.random.choice` over names after a seed of 0, as the published data sets do, in the order of the list."""
    names = {k: [photo for photo, number in MADE_UP if number == k] for k in (0, 4, 8)}
    before = np.random.get_state()
    np.random.seed(0)
    expected = []
    for _ in range(1000):
        k = np.random.choice([0, 4, 8], 1, replace=False)[0]
        query = np.random.choice(names[k], 1, replace=False)[0]
        found = []
        while supports and len(found) < supports:
            support = np.random.choice(names[k], 1, replace=False)[0]
            if support != query:
                found.append(support)
        expected.append((str(query), int(k)))
    np.random.set_state(before)
    assert subset_of_pairs(MADE_UP, subset, "coco20i") == expected
    assert np.array_equal(np.random.get_state()[1], before[1]), "nobody else's random state is touched"


def test_pascal_wraps_around():
    drawn = subset_of_pairs(MADE_UP, "hsnet1000", "pascal5i")
    assert len(drawn) == 1000 and drawn[:15] == MADE_UP and drawn[15:30] == MADE_UP and drawn[-1] == MADE_UP[999 % 15]


def test_episodes_of_a_class_that_no_photo_shows():
    with pytest.raises(ShardError, match="no photo shows class 12; test on all pairs instead"):
        subset_of_pairs(MADE_UP, "hsnet1000", "coco20i", (0, 4, 8, 12))
    assert len(subset_of_pairs([("only", 3)], "hsnet1000")) == 1000, "a single photo has no support photo"


def test_published_list_in_the_numbering_of_the_shards(tmp_path):
    """Class ids are those of the vocabulary, here one with classes in another order and natural spellings."""
    names = class_names("coco20i", natural=True)
    vocabulary = ClassVocabulary(("background", *reversed(names)))
    facts = {str(k): [10 * k + 1] for k in range(0, 80, 4)}
    (tmp_path / "val_fold0.json.gz").write_bytes(gzip.compress(json.dumps(facts).encode()))
    present = present_of({f"COCO_val2014_{10 * k + 1:012d}": [80 - k] for k in range(0, 80, 4)})
    split = fold_split(vocabulary, "coco20i", 0)
    with pytest.raises(
        ShardError, match="20 pairs, the official list of coco20i has 35783: copy the list again, or read it as a list of your own"
    ):
        chosen(present, split, vocabulary=vocabulary, source="official", benchmark="coco20i", lists=str(tmp_path))
    own = str(tmp_path / "val_fold0.json.gz")
    pairs = chosen(present, split, vocabulary=vocabulary, source="list", benchmark="coco20i", lists=own)
    assert pairs == [(f"COCO_val2014_{10 * k + 1:012d}", 80 - k) for k in range(0, 80, 4)]
    drawn = chosen(present, split, vocabulary=vocabulary, source="list", benchmark="coco20i", lists=own, subset="hsnet1000")
    straight = [(f"COCO_val2014_{10 * k + 1:012d}", k) for k in range(0, 80, 4)]
    assert drawn == [(photo, 80 - k) for photo, k in subset_of_pairs(straight, "hsnet1000")], "drawn in the order of the benchmark"
    assert isinstance(split, ClassSplit) and vocabulary.names[80] == "person"

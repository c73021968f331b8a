"""Faults of whole shards and data folders, of the labels of a split, and of class lists."""

import base64
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ofaseg.data import codec, tsv
from ofaseg.vocabulary import ClassVocabulary
from tests.faults.corpus import (
    NUM_ROWS,
    ROW,
    VOCABULARY,
    clean_row,
    edit_vocabulary,
    fault,
    write_clean_shards,
    write_unchecked,
    write_vocabulary,
)
from tests.toy import NAMES

TSV = "train-00000-of-00001.tsv"
PARQUET = "train.parquet"


def replace_file(root: Path, data: bytes) -> None:
    (root / TSV).write_bytes(data)
    tsv.index_path(root / TSV).unlink(missing_ok=True)


def without_hashes(root: Path) -> None:
    """vocabulary.json as before hashes were written, so that only what a test breaks is found."""
    edit_vocabulary(root, num_rows=None, content_hash=None, files=None)


def as_parquet(root: Path) -> pa.Table:
    """Replaces the TSV by one Parquet file of the same rows; returns its table."""
    for path in root.iterdir():
        path.unlink()
    write_unchecked(root, [clean_row(k) for k in range(NUM_ROWS)], "parquet")
    return pq.read_table(root / PARQUET)


# ---- files ----


@fault("shards", "bad_file", "the file is empty", "write it again", file=TSV)
def tsv_empty(root):
    replace_file(root, b"")


@fault("shards", "bad_file", "a gzip file", "gunzip", file=TSV)
def tsv_is_gzip(root):
    replace_file(root, gzip.compress((root / TSV).read_bytes()))


@fault("shards", "bad_file", "a zip file", "unpack it", file=TSV)
def tsv_is_zip(root):
    replace_file(root, b"PK\x03\x04" + bytes(100))


@fault("shards", "bad_file", "a Parquet file", "rename it to end in .parquet", file=TSV)
def tsv_is_parquet(root):
    write_unchecked(root / "other", [clean_row(0)], "parquet")
    replace_file(root, (root / "other" / PARQUET).read_bytes())


@fault("shards", "bad_file", "Git LFS pointer", "git lfs pull", file=TSV)
def tsv_is_lfs_pointer(root):
    replace_file(root, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


@fault("shards", "bad_file", "a web page", "download the file again", file=TSV)
def tsv_is_web_page(root):
    replace_file(root, b"\n<!DOCTYPE html>\n<title>Sign in</title>\n")


@fault("shards", "bad_file", "it is a link to", "restore that file", file=TSV)
def tsv_is_dangling_link(root):
    (root / TSV).unlink()
    tsv.index_path(root / TSV).unlink()
    (root / TSV).symlink_to(root / "moved" / TSV)


@fault("shards", "bad_file", "a folder, not a file", file=TSV)
def tsv_is_folder(root):
    (root / TSV).unlink()
    (root / TSV).mkdir()


@fault("shards", "bad_field", "byte order mark", "write the row again", column="image", row=0, file=TSV)
def tsv_with_byte_order_mark(root):
    without_hashes(root)
    replace_file(root, b"\xef\xbb\xbf" + (root / TSV).read_bytes())


@fault("shards", "bad_row", "line 8 has 1 columns", row=NUM_ROWS - 1, file=TSV)
def tsv_cut_off(root):
    """A copy that stopped in the last row."""
    without_hashes(root)
    data = (root / TSV).read_bytes()
    replace_file(root, data[: data.rstrip(b"\n").rindex(b"\n") + 500])


@fault("shards", "line_ends", file=TSV)
def tsv_with_windows_line_ends(root):
    replace_file(root, (root / TSV).read_bytes().replace(b"\n", b"\r\n"))


@fault("shards", "bad_row", "line 9 is empty", "remove it", row=NUM_ROWS, file=TSV)
def tsv_with_empty_last_line(root):
    without_hashes(root)
    replace_file(root, (root / TSV).read_bytes() + b"\n")


@fault("shards", "stale_index", file=TSV)
def index_of_an_older_file(root):
    without_hashes(root)
    lines = (root / TSV).read_bytes().splitlines(keepends=True)
    (root / TSV).write_bytes(b"".join(lines[::-1]))


@fault("shards", "stale_index", file=TSV)
def index_damaged(root):
    path = tsv.index_path(root / TSV)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


@fault("shards", "bad_file", "not a complete Parquet file", "copy or write it again", file=PARQUET)
def parquet_cut_off(root):
    as_parquet(root)
    data = (root / PARQUET).read_bytes()
    (root / PARQUET).write_bytes(data[: len(data) // 2])


@fault("shards", "bad_file", "not a complete Parquet file", file=PARQUET)
def parquet_empty(root):
    as_parquet(root)
    (root / PARQUET).write_bytes(b"")


@fault("shards", "bad_file", "no row", file=PARQUET)
def parquet_without_rows(root):
    table = as_parquet(root)
    pq.write_table(table.slice(0, 0), root / PARQUET)


@fault("shards", "bad_column", "no label map", column="label_map", file=PARQUET)
def parquet_without_label_column(root):
    table = as_parquet(root)
    pq.write_table(table.rename_columns(["mask" if name == "label_map" else name for name in table.column_names]), root / PARQUET)


@fault("shards", "bad_column", "rename or add the missing one", column="image", file=PARQUET)
def parquet_without_image_column(root):
    table = as_parquet(root)
    pq.write_table(table.rename_columns(["img" if name == "image" else name for name in table.column_names]), root / PARQUET)


@fault("shards", "bad_column", "instead of", "write the file again", column="image", file=PARQUET)
def parquet_with_images_as_text(root):
    table = as_parquet(root)
    text = pa.array([base64.b64encode(clean_row(k)["image"]).decode() for k in range(NUM_ROWS)])
    pq.write_table(table.set_column(0, "image", text), root / PARQUET)


@fault("shards", "bad_column", "type", "write the file again", column="boxes", file=PARQUET)
def parquet_with_other_boxes(root):
    table = as_parquet(root)
    boxes = pa.array([[[2.0, 2.0, 10.0, 12.0]]] * NUM_ROWS)
    pq.write_table(table.set_column(table.column_names.index("boxes"), "boxes", boxes), root / PARQUET)


@fault("shards", "bad_field", "only the path", "embedded bytes", column="image", row=ROW, file=PARQUET)
def parquet_with_paths_only(root):
    rows = as_parquet(root).to_pylist()
    rows[ROW]["image"] = {"bytes": None, "path": "photos/3.jpg"}
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(root / PARQUET)), root / PARQUET)


@fault("shards", "bad_field", "is damaged", "copy or write the file again", column="image", row=0, file=PARQUET)
def parquet_with_damaged_page(root):
    as_parquet(root)
    data = bytearray((root / PARQUET).read_bytes())
    data[data.index(clean_row(0)["image"]) + 50] ^= 0xFF
    (root / PARQUET).write_bytes(data)


# ---- sets of files and what vocabulary.json says of them ----


@fault("shards", "incomplete_split", "1 of 2 shards", "are missing", "copy the folder again")
def shard_missing(root):
    write_clean_shards(root, rows_per_shard=4)
    (root / "train-00001-of-00002.tsv").unlink()


@fault("shards", "incomplete_split", "more than one set of shards", "remove all but one", also=("duplicate_id",))
def two_sets_of_shards(root):
    shutil.copy(root / TSV, root / "train.tsv")


@fault("shards", "incomplete_split", "was interrupted", "write the split again")
def writing_was_interrupted(root):
    edit_vocabulary(root, writing=["train"])


@fault("shards", "row_count", "7 rows, vocabulary.json says 8", "copy or write the folder again", file=TSV)
def row_lost(root):
    replace_file(root, b"".join((root / TSV).read_bytes().splitlines(keepends=True)[:-1]))


@fault("shards", "row_count", "9 rows, vocabulary.json says 8", file=TSV, also=("duplicate_id",))
def row_doubled(root):
    lines = (root / TSV).read_bytes().splitlines(keepends=True)
    replace_file(root, b"".join([*lines, lines[0]]))


@fault("shards", "content_changed", file=TSV)
def row_replaced(root):
    """Another photo under the old id, without a word in vocabulary.json."""
    lines = (root / TSV).read_bytes().splitlines(keepends=True)
    fields = lines[ROW].split(b"\t")
    lines[ROW] = b"\t".join([codec.b64encode(clean_row(50)["image"]), *fields[1:]])
    replace_file(root, b"".join(lines))


@fault("shards", "content_changed", file=TSV)
def rows_in_another_order(root):
    replace_file(root, b"".join((root / TSV).read_bytes().splitlines(keepends=True)[::-1]))


@fault("shards", "incomplete_split")
def listed_split_absent(root):
    write_clean_shards(root, split="val", first=20)
    for path in root.glob("val*"):
        path.unlink()


@fault("shards", "bad_vocabulary", "is not a number", "restore the file", file="vocabulary.json")
def row_counts_edited_by_hand(root):
    edit_vocabulary(root, num_rows={"train": "eight"})


@fault("shards", "leak", column="image", row=0, file="val-00000-of-00001.tsv")
def photo_in_two_splits(root):
    write_clean_shards(root, split="val", first=NUM_ROWS - 1)


@fault("shards", "repeated_image", column="image", row=5)
def photo_twice_in_a_split(root):
    replace_rows(root, [clean_row(k) | ({"image": clean_row(1)["image"]} if k == 5 else {}) for k in range(NUM_ROWS)])


# ---- the labels of a whole split ----


def replace_rows(root: Path, rows: list[dict], vocabulary: ClassVocabulary = VOCABULARY) -> None:
    for path in root.iterdir():
        path.unlink()
    write_unchecked(root, rows, vocabulary=vocabulary)


def write_summary(root: Path, names) -> None:
    """What the converters write beside the split train, as far as class names go."""
    classes = [{"id": k, "name": name} for k, name in enumerate(names)]
    (root / "summary_train.json").write_text(json.dumps({"split": "train", "classes": classes}))


def relabel(root: Path, change, vocabulary: ClassVocabulary = VOCABULARY) -> None:
    """Writes the split again with `change` applied to the stored values of every map (classes 0..2, 255 no label)."""
    rows = []
    for k in range(NUM_ROWS):
        row = clean_row(k)
        values = change(codec.decode_stored_labels(row["label_map"]).astype(np.int64))
        rows.append(row | {"label_map": codec.encode_image(values.astype(np.uint8))})
    replace_rows(root, rows, vocabulary)


@fault("shards", "reduce_zero_label", "label value 3", "label_offset", column="label_map", row=0, also=("label_range",))
def classes_from_1_with_background_0(root):
    """ADE20K as published: 0 other, classes from 1, while the vocabulary counts from 0."""
    relabel(root, lambda values: np.where(values == 255, 0, values + 1))


@fault("shards", "reduce_zero_label", column="label_map", row=0)
def classes_from_0_read_as_from_1(root):
    """The published ADE20K notebook: maps that count from 0 are said to count from 1; the last class never occurs."""
    relabel(root, lambda values: values, ClassVocabulary(VOCABULARY.names, label_offset=1, ignore_label=0))


@fault("shards", "reduce_zero_label", "label value 0", "allowed are 1..3", column="label_map", row=0, also=("label_range",))
def background_0_is_no_class(root):
    from_one = ClassVocabulary(VOCABULARY.names, label_offset=1, ignore_label=255)
    relabel(root, lambda values: np.where(values == 255, 0, values + 1), from_one)


@fault("shards", "maybe_shifted", column="label_map")
def background_0_read_as_a_class(root):
    """ADE20K as published, in few photos: the last class, whose value would have no name, does not occur."""
    relabel(root, lambda values: np.where(values == 255, 0, values + 1), ClassVocabulary((*NAMES, "yellow", "grey")))


@fault("shards", "classes_differ", file="vocabulary.json")
def vocabulary_lost_its_last_name(root):
    write_summary(root, (*NAMES, "yellow"))


@fault("shards", "classes_differ", file="vocabulary.json")
def vocabulary_in_another_order(root):
    write_summary(root, NAMES)
    edit_vocabulary(root, names=[NAMES[2], *NAMES[:2]])


@fault("shards", "names_changed", file="vocabulary.json")
def vocabulary_in_other_words(root):
    write_summary(root, NAMES)
    edit_vocabulary(root, names=["crimson", *NAMES[1:]])


@fault("shards", "ignore_value", "label value 255", "ignore", column="label_map", row=0, also=("label_range",))
def ignore_255_unknown(root):
    relabel(root, lambda values: values, ClassVocabulary(VOCABULARY.names, ignore_label=250))


@fault("shards", "class_count", "label value", "; check the number of class names", column="label_map", row=0, also=("label_range",))
def fewer_names_than_classes(root):
    relabel(root, lambda values: np.where(values == 255, 255, values * 2 + values % 2))


@fault("shards", "label_range", "label value 3, 4, 5, 6, 7, ... in", "; check the number", column="label_map", row=0, also=("class_count",))
def many_foreign_values(root):
    relabel(root, lambda values: values.cumsum(axis=1) % 11)


@fault("shards", "stretched_labels", "label value", "map the labels again", column="label_map", row=0, also=("label_range",))
def labels_stretched_for_display(root):
    relabel(root, lambda values: np.where(values == 255, 0, values) * 100)


@fault("shards", "stretched_labels", column="label_map", row=0)
def mask_of_0_and_255(root):
    relabel(root, lambda values: np.where(values == 1, 255, 0), ClassVocabulary(("background", "cell")))


@fault("shards", "stretched_labels", "label value 255", column="label_map", row=0, also=("label_range",))
def mask_of_0_and_255_with_another_ignore_value(root):
    relabel(root, lambda values: np.where(values == 1, 255, 0), ClassVocabulary(("background", "cell"), ignore_label=254))


@fault("shards", "labels_empty", column="label_map", also=("no_label",))
def every_map_unlabelled(root):
    relabel(root, lambda values: np.full_like(values, 255))


@fault("shards", "one_class", column="label_map")
def every_map_black(root):
    relabel(root, np.zeros_like)


@fault("shards", "unused_class", column="label_map")
def class_never_used(root):
    relabel(root, lambda values: np.where(values == 2, 255, values))


# ---- vocabulary.json ----


@fault("shards", "no_vocabulary", "no class names", "--class-names")
def vocabulary_missing(root):
    """Official TSV files: image, label map, id, and nothing beside them."""
    rows = [clean_row(k) for k in range(NUM_ROWS)]
    replace_rows(root, rows)
    (root / "vocabulary.json").unlink()
    lines = [[codec.b64encode(row["image"]), codec.b64encode(row["label_map"]), row["id"].encode()] for row in rows]
    (root / "train.tsv").write_bytes(b"".join(b"\t".join(line) + b"\n" for line in lines))


@fault("shards", "bad_vocabulary", "not valid JSON", "write the shards again", file="vocabulary.json")
def vocabulary_cut_off(root):
    (root / "vocabulary.json").write_text('{"names": ["red", "gre')


@fault("shards", "bad_vocabulary", "needs a JSON object", file="vocabulary.json")
def vocabulary_is_a_list(root):
    write_vocabulary(root, ["red", "green", "blue"])


@fault("shards", "bad_vocabulary", "needs a JSON object with a list 'names'", file="vocabulary.json")
def vocabulary_names_as_text(root):
    edit_vocabulary(root, names="red, green, blue")


@fault("shards", "bad_vocabulary", "'green' stands twice", "merge or rename", file="vocabulary.json")
def vocabulary_name_doubled(root):
    edit_vocabulary(root, names=["red", "green", "green"])


@fault("shards", "bad_vocabulary", "class 1 has an empty name", file="vocabulary.json")
def vocabulary_name_empty(root):
    edit_vocabulary(root, names=["red", "", "blue"])


@fault("shards", "bad_vocabulary", "2 entries in 'thing'", file="vocabulary.json")
def vocabulary_lists_of_other_length(root):
    edit_vocabulary(root, thing=[True, False])


@fault("shards", "bad_vocabulary", "the ignore label 2 is also the stored value of a class", file="vocabulary.json")
def vocabulary_ignores_a_class(root):
    edit_vocabulary(root, ignore_index=2)


@fault("shards", "bad_vocabulary", "label_offset is 'one', not a number", "correct it", file="vocabulary.json")
def vocabulary_offset_as_text(root):
    edit_vocabulary(root, label_offset="one")


@fault("shards", "bad_vocabulary", "palette is not a list", file="vocabulary.json")
def vocabulary_palette_as_numbers(root):
    edit_vocabulary(root, palette=[1, 2, 3])


@fault("shards", "similar_names", file="vocabulary.json", row=2)
def vocabulary_names_alike(root):
    edit_vocabulary(root, names=["traffic light", "green", "Traffic-Light"])


@fault("shards", "numbered_names", file="vocabulary.json", row=1)
def vocabulary_names_with_numbers(root):
    edit_vocabulary(root, names=["red", "1: green", "blue"])


@fault("shards", "numbered_names", file="vocabulary.json", row=0)
def vocabulary_names_that_all_begin_with_their_number(root):
    edit_vocabulary(root, names=["0 red", "1 green", "2 blue"])


# ---- class lists of their own ----


@fault("path", "bad_vocabulary", "not a UTF-8 text file", "write one class name per line", file="names.txt")
def class_list_in_latin_1(root):
    (root / "names.txt").write_bytes("Straße\nBürgersteig\n".encode("latin-1"))
    return root / "names.txt"


@fault("path", "bad_vocabulary", "no class name", file="names.txt")
def class_list_empty(root):
    (root / "names.txt").write_text("\n\n")
    return root / "names.txt"


@fault("path", "doubtful_names", file="names.txt", row=1)
def class_list_with_a_blank_line(root):
    (root / "names.txt").write_text("cat\n \ndog\n\n")
    return root / "names.txt"


@fault("path", "doubtful_names", file="names.txt", row=0)
def class_list_with_a_comment(root):
    (root / "names.txt").write_text("# animals\ncat\ndog\n")
    return root / "names.txt"


@fault("path", "doubtful_names", file="names.txt", row=1)
def class_list_with_a_tab(root):
    (root / "names.txt").write_text("cat\ndog\t2\n")
    return root / "names.txt"


@fault("path", "bad_vocabulary", "'cat' stands twice", file="names.txt")
def class_list_with_a_name_twice(root):
    (root / "names.txt").write_text("cat\ndog\ncat\n")
    return root / "names.txt"


@fault("path", "bad_vocabulary", file="names.json")
def class_list_of_other_json(root):
    (root / "names.json").write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}]}))
    return root / "names.json"


# ---- paths ----


@fault("path", "missing_path", "no such folder", file="shards")
def path_missing(root):
    return root / "shards"


@fault("path", "unknown_path", "no shards of split", file="empty")
def folder_empty(root):
    (root / "empty").mkdir()
    return root / "empty"


@fault("path", "unknown_path", file="photos.rar")
def file_of_no_known_kind(root):
    (root / "photos.rar").write_bytes(b"Rar!")
    return root / "photos.rar"


@fault("path", "bad_file", "cannot be read", "permissions", file="train.tsv")
def shard_without_permission(root):
    path = write_unchecked(root / "data", [clean_row(0)])
    os.chmod(path, 0)
    return root / "data"



"""The drawn world: deterministic, split by split independent, and its columns agree with each other."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_prep import shapes
from data_prep.shapes_drawing import OBJECTS, SIDE, draw_object
from ofaseg.data import pretraining_dataset
from ofaseg.prompts import SEGMENTATION_PROMPT, UNKNOWN_NAME

DICTIONARY = Path(shapes.__file__).resolve().parent.parent / "ofaseg" / "assets" / "shapes" / "dict.txt"


def decode(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def rows():
    return list(shapes.ShapesSource("train", num=60, seed=3))


def test_rows_are_a_function_of_seed_split_and_index(rows):
    assert shapes.make_row(3, "train", 7) == rows[7]
    longer = shapes.ShapesSource("train", num=500, seed=3)
    assert [longer[i] for i in range(5)] == rows[:5] and len(longer) == 500


def test_splits_and_seeds_have_different_streams(rows):
    others = [shapes.make_row(3, "val", 7), shapes.make_row(3, "test", 7), shapes.make_row(4, "train", 7)]
    images = {row["image"] for row in (rows[7], *others)}
    assert len(images) == 4


def test_label_maps_hold_known_classes_only(rows):
    for row in rows:
        label_map = decode(row["label_map"])
        assert label_map.shape == (SIDE, SIDE) and label_map.max() < len(shapes.CLASS_NAMES)
        assert decode(row["image"]).shape == (SIDE, SIDE, 3)


def test_boxes_and_segments_agree_with_the_label_map(rows):
    for row in rows:
        label_map, ids = decode(row["label_map"]), decode(row["segment_map"]).astype(int) @ (1, 256, 65536)
        assert sum(segment["area"] for segment in row["segments"]) == SIDE * SIDE
        for box, segment in zip(row["boxes"], row["segments"], strict=True):
            mask = ids == segment["id"]
            assert set(np.unique(label_map[mask])) == {segment["class_id"]} and segment["class_id"] == box["class_id"]
            x0, y0, x1, y1 = (int(v) for v in box["box"])
            assert mask[y0:y1, x0:x1].sum() == mask.sum() == segment["area"]
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
            assert shapes.CLASS_NAMES[box["class_id"]] in box["text"].split()


def test_captions_name_only_what_is_there(rows):
    for row in rows:
        present = {shapes.CLASS_NAMES[segment["class_id"]] for segment in row["segments"]}
        for caption in row["captions"]:
            named = set(caption.split()) & set(shapes.CLASS_NAMES)
            assert named and named <= present


def test_earlier_objects_stay_visible(rows):
    for row in rows:
        areas = [segment["area"] for segment in row["segments"] if segment["class_id"] >= 5]
        assert all(area >= shapes.MIN_VISIBLE_PIXELS for area in areas) and 1 <= len(areas) <= 4


def test_every_object_kind_is_drawn_in_its_colours():
    rng = np.random.default_rng(0)
    drawn = [draw_object(rng) for _ in range(400)]
    assert {placed.kind for placed in drawn} == set(OBJECTS)
    assert all(placed.colour in OBJECTS[placed.kind][1] for placed in drawn)


def test_the_shipped_dictionary_covers_every_word(rows):
    words = {line.split()[0] for line in DICTIONARY.read_text().splitlines()}
    prompts = [SEGMENTATION_PROMPT, UNKNOWN_NAME, pretraining_dataset.CAPTION_PROMPT, pretraining_dataset.BOX_PROMPT]
    prompts += [*pretraining_dataset.GROUND_PROMPT, *pretraining_dataset.INFILL_PROMPT]
    texts = prompts + [c for row in rows for c in row["captions"]] + [b["text"] for row in rows for b in row["boxes"]]
    assert {word for text in texts for word in text.split()} <= words
    assert set(shapes.caption_words()) <= words and set(shapes.vocabulary().names) <= words


def test_unknown_split_and_negative_number_say_what_to_do():
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, val, test"):
        shapes.ShapesSource("dev")
    with pytest.raises(ValueError, match="must not be negative"):
        shapes.ShapesSource("val", num=-1)


def test_novel_classes_are_marked_and_drawn_all_the_same():
    args = SimpleNamespace(num={"": 3}, seed=1, novel="ball, moon")
    source, plain = shapes.open_split(None, "val", args), shapes.ShapesSource("val", 3)
    marked = source.vocabulary
    assert [name for name, novel in zip(marked.names, marked.novel) if novel] == ["ball", "moon"]
    assert source[2] == plain[2]

"""Rows for tests of the shards."""

import numpy as np

from ofaseg.data import codec
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=("sky", "tall grass", "car"), thing=(False, False, True), novel=(False, True, False), source="test")


def make_row(k: int, height: int = 5, width: int = 9) -> dict:
    """Row `k` with every column; height and width differ, so that swapped axes show."""
    rng = np.random.default_rng(k)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    boxes = [{"box": [0.5, 1.0, 1e-3 * k, 4.0], "text": "a car", "class_id": 2}, {"box": [0, 0, 1, 1], "text": "", "class_id": None}]
    ids = rng.integers(0, 3, (height, width))
    return {
        "image": codec.encode_image(image, "jpeg" if k % 2 else "png"),
        "label_map": codec.encode_label_map(rng.integers(-1, 3, (height, width)), VOCABULARY) if k % 4 else None,
        "id": f"sample_{k}",
        "captions": [f"a picture, number {k}", 'tab\there, "quotes", \n line, naïve 猫'][: k % 3],
        "boxes": boxes[: k % 3],
        "segment_map": codec.encode_segment_map(ids) if k % 3 else None,
        "segments": [{"id": 1, "class_id": 2, "is_crowd": bool(k % 2), "area": 7, "box": [0.0, 0.0, 3.0, 4.0]}] if k % 3 else [],
        "instances": [
            {"id": 5, "class_id": 1, "is_crowd": False, "area": 6.5, "box": [0.5, 0.0, 3.0, 4.0], "mask": text_of_mask(ids == j)}
            for j in range(k % 3)
        ],
    }

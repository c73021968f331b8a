"""Segments and objects as files in COCO's formats, for other tools: of a split of shards, or of predictions.

A class has the number that vocabulary.json keeps from the file it came from (`category_ids`), else its id + 1. A photo whose id is a
whole number keeps that as `image_id`, as COCO's do, when all ids of the split are such and differ; otherwise photos count from 1.
"""

import json
from functools import cache
from pathlib import Path
from typing import Iterable, Optional, Sequence

import numpy as np

from ofaseg.atomic import atomic_write
from ofaseg.data import codec
from ofaseg.data.rows import ShardError
from ofaseg.data.shards import ShardReader
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import ClassVocabulary

CATEGORY_IDS = "category_ids"
_DIGITS = 6
"""Decimals of boxes; COCO writes two, and x1 - x0 would show the rounding of binary numbers."""


class ExportError(ValueError):
    """Segments that cannot be written in COCO's formats; the message names the photo."""


def category_ids(vocabulary: ClassVocabulary) -> list[int]:
    """The category number of each class.

    Raises:
        ExportError: the vocabulary keeps numbers, but not one of its own for each class.
    """
    kept = vocabulary.extra.get(CATEGORY_IDS)
    if kept is None:
        return [k + 1 for k in range(len(vocabulary))]
    if not isinstance(kept, list) or len(kept) != len(vocabulary) or len(set(kept)) != len(kept):
        raise ExportError(f"{vocabulary.source}: {CATEGORY_IDS} must hold {len(vocabulary)} different numbers; correct or remove it")
    return kept


def categories(vocabulary: ClassVocabulary) -> list[dict]:
    """The list `categories` of a COCO file."""
    things = vocabulary.thing or (True,) * len(vocabulary)
    numbers = category_ids(vocabulary)
    return [{"id": number, "name": name, "isthing": int(thing)} for number, name, thing in zip(numbers, vocabulary.names, things)]


def image_numbers(ids: Sequence[str]) -> list[int]:
    """The `image_id` of each photo, see the module's docstring."""
    numbers = [int(text) if text.isascii() and text.isdigit() else -1 for text in ids]
    whole = -1 not in numbers and len(set(numbers)) == len(numbers)
    return numbers if whole else list(range(1, len(ids) + 1))


def export_split(reader: ShardReader, vocabulary: ClassVocabulary, out, split: str, photo_suffix: Optional[str] = None) -> list[Path]:
    """Writes what a split holds: `panoptic_<split>.json` with the PNG files of folder `panoptic_<split>`, `instances_<split>.json`.

    Args:
        reader: rows with the columns segment_map and segments, or instances, or both.
        out: folder to write.
        photo_suffix: of the photos' file names in the lists `images`, None for what each photo is; the photos themselves are not written.

    Returns:
        the JSON files.

    Raises:
        ShardError: a row cannot be read, or there is neither column.
        ExportError: a map and a list of segments do not belong together.
    """
    has_segments = {"segment_map", "segments"} <= set(reader.columns)
    if not has_segments and "instances" not in reader.columns:
        raise ShardError(f"{reader.paths[0]}: neither segments nor instances to export; convert the data with its segments")
    ids = [reader.read(i, columns=["id"])["id"] for i in range(len(reader))]
    numbers, written = image_numbers(ids), []

    @cache  # a photo may be in both kinds of files
    def suffix(i: int) -> str:
        return photo_suffix if photo_suffix is not None else codec.suffix_of(reader.read(i, columns=["image"])["image"] or b"") or ".jpg"

    if has_segments:
        panoptic = PanopticWriter(out, f"panoptic_{split}", vocabulary)
        for i, number in enumerate(numbers):
            row = reader.read(i, columns=["segment_map", "segments"])
            size = reader.image_size(i)
            if row["segment_map"] is None and row["segments"]:
                raise ExportError(f"{reader.location(i, 'segment_map')}: segments, but no segment map; write the row again")
            where = reader.location(i, "segment_map")
            drawn = np.zeros(size, np.int32) if row["segment_map"] is None else codec.decode_segment_map(row["segment_map"], where)
            panoptic.add(number, ids[i], drawn, row["segments"], suffix(i))
        written.append(panoptic.close())
    if "instances" in reader.columns:
        objects = InstanceWriter(out, f"instances_{split}", vocabulary)
        for i, number in enumerate(numbers):
            objects.add(number, ids[i], reader.image_size(i), reader.read(i, columns=["instances"])["instances"], suffix(i))
        written.append(objects.close())
    return written


class PanopticWriter:
    """Writes `<name>.json` and a PNG per photo in folder `<name>`, both below `out`; the format of panopticapi, for truth and results."""

    def __init__(self, out, name: str, vocabulary: ClassVocabulary):
        self.folder, self.path, self.vocabulary = Path(out) / name, Path(out) / f"{name}.json", vocabulary
        self._numbers = category_ids(vocabulary)
        self._images: list[dict] = []
        self._annotations: list[dict] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, image_id: int, stem: str, segment_map: np.ndarray, segments: Iterable[dict], photo_suffix: str = ".jpg") -> None:
        """Writes the PNG of one photo.

        Args:
            stem: of the photo's file name, below folders or not; the PNG has the same one.
            segment_map: (H, W) ids, 0 = none.
            segments: an entry per id, with id, class_id, area and box; is_crowd where it is one.

        Raises:
            ExportError: ids of map and list differ, a segment without class, or a file name that leaves the folder.
        """
        listed, drawn = [segment["id"] for segment in segments], set(np.unique(segment_map).tolist()) - {0}
        if len(set(listed)) != len(listed) or set(listed) != drawn:
            problem = f"ids drawn only: {sorted(drawn - set(listed))[:5]}, listed only or twice: {sorted(set(listed) - drawn)[:5]}"
            raise ExportError(f"{stem}: the segment map and the list differ ({problem}); write them from the same source")
        file_name = f"{_inside(stem)}.png"
        (self.folder / file_name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / file_name) as file:
            file.write(codec.encode_segment_map(segment_map))
        height, width = segment_map.shape
        infos = [_info(segment, self._numbers, stem) | {"area": int(segment["area"])} for segment in segments]
        self._images.append({"id": image_id, "file_name": stem + photo_suffix, "height": int(height), "width": int(width)})
        self._annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})

    def close(self) -> Path:
        """Writes the JSON file and returns its path."""
        _write(self.path, {"images": self._images, "annotations": self._annotations, "categories": categories(self.vocabulary)})
        return self.path


class InstanceWriter:
    """Writes `<name>.json` below `out`: objects with masks as run lengths. With `results`, the list of detections that COCO's tools load.

    Entries without an id of their own, or with one that another object has, are numbered on.
    """

    def __init__(self, out, name: str, vocabulary: ClassVocabulary, results: bool = False):
        self.path, self.vocabulary, self.results = Path(out) / f"{name}.json", vocabulary, results
        self._numbers = category_ids(vocabulary)
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def add(self, image_id: int, stem: str, size: tuple[int, int], instances: Iterable[dict], photo_suffix: str = ".jpg") -> None:
        """Adds the objects of one photo of (H, W) pixels.

        Args:
            instances: entries of the column `instances`; with `results` each also has a score.

        Raises:
            ExportError: an object without class, or without a score in `results`.
        """
        self._images.append({"id": image_id, "file_name": stem + photo_suffix, "height": int(size[0]), "width": int(size[1])})
        for entry in instances:
            about = {"image_id": image_id, **_info(entry, self._numbers, stem), "area": entry["area"]}
            about["segmentation"] = {"size": [int(size[0]), int(size[1])], "counts": entry["mask"]}
            if self.results:
                if "score" not in entry:
                    raise ExportError(f"{stem}: an object without a score; detections need one")
                about = {key: about[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": float(entry["score"])}
            self._annotations.append(about)

    def close(self) -> Path:
        """Writes the JSON file and returns its path."""
        if self.results:
            _write(self.path, self._annotations)
            return self.path
        self._number_objects()
        _write(self.path, {"images": self._images, "annotations": self._annotations, "categories": categories(self.vocabulary)})
        return self.path

    def _number_objects(self) -> None:
        """Gives objects whose id is missing, 0 or taken the next free numbers; COCO's tools need ids from 1 on."""
        taken, free = set(), max((entry["id"] for entry in self._annotations), default=0)
        for entry in self._annotations:
            if entry["id"] < 1 or entry["id"] in taken:
                free += 1
                entry["id"] = free
            taken.add(entry["id"])


def instance_entries(masks: np.ndarray, class_ids: Sequence[int], scores: Sequence[float], boxes: Sequence[Sequence[float]]) -> list[dict]:
    """Entries of the column `instances`, with scores, of predicted (N, H, W) bool masks."""
    found = zip(masks, class_ids, scores, boxes)
    return [
        {"id": n, "class_id": int(k), "is_crowd": False, "area": float(mask.sum()), "box": [float(v) for v in box]}
        | {"mask": text_of_mask(mask), "score": float(score)}
        for n, (mask, k, score, box) in enumerate(found, start=1)
    ]


def _info(entry: dict, numbers: list[int], stem: str) -> dict:
    """What segments and objects have in common; boxes become [x, y, width, height]."""
    class_id: Optional[int] = entry["class_id"]
    if class_id is None or not 0 <= class_id < len(numbers):
        raise ExportError(f"{stem}: segment {entry.get('id')} has class {class_id}, outside 0..{len(numbers) - 1}; correct the row")
    x0, y0, x1, y1 = entry["box"]
    bbox = [_plain_number(v) for v in (x0, y0, x1 - x0, y1 - y0)]
    about = {"id": int(entry.get("id", 0)), "category_id": numbers[class_id], "iscrowd": int(entry.get("is_crowd", False)), "bbox": bbox}
    return about | ({"score": float(entry["score"])} if entry.get("score") is not None else {})


def _plain_number(value: float):
    value = round(float(value), _DIGITS)
    return int(value) if value.is_integer() else value


def _inside(stem: str) -> str:
    parts = stem.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ExportError(f"{stem!r}: a PNG file of this id would lie outside the folder; give the sample a plain id")
    return stem


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False)

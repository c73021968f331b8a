"""What COCO's panoptic and instance files say about one photo, as the columns of a row; and the categories behind it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Optional

import numpy as np

from data_prep.mask_drawing import draw_mask
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

CATEGORY_IDS = "category_ids"
"""Entry of vocabulary.json: the number of each class in the COCO file that it comes from, for export."""
_SHOWN, _LARGEST = 5, 1e12


@dataclass(frozen=True)
class Categories:
    """COCO's category ids -> class ids; picklable.

    Attributes:
        vocabulary: the classes kept, with `CATEGORY_IDS`.
        classes: category id -> class id 0..K-1, or None for known categories that are left out: their pixels have no label.
    """

    vocabulary: ClassVocabulary
    classes: dict[int, Optional[int]]

    def class_id(self, category, where: str) -> Optional[int]:
        """Raises SourceError for an unknown category."""
        if not _is_whole(category) or category not in self.classes:
            problem = f"category_id {category!r} is not in the list of categories"
            raise SourceError(f"{where}: {problem}; add it there, or correct the record")
        return self.classes[category]


def read_categories(records: list, where: str, countable: bool = True) -> list[dict]:
    """The entries {id, name, isthing} of a list `categories`, checked; `countable` where they do not say isthing.

    Raises:
        SourceError: an entry without a number and a name, a number or a name that stands twice, or no entry.
    """
    found: list[dict] = []
    for number, record in enumerate(records):
        place = f"{where}, categories[{number}]"
        valid = isinstance(record, dict) and _is_whole(record.get("id")) and isinstance(record.get("name"), str)
        if not valid or not record["name"].strip():
            raise SourceError(f"{place}: {record!r} has no id and name; correct the record")
        found.append({"id": record["id"], "name": record["name"].strip(), "isthing": _flag(record, "isthing", place, countable)})
    for key in ("id", "name"):
        values = [entry[key] for entry in found]
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise SourceError(f"{where}: two categories have the {key} {repeated[0]!r}; give each its own")
    if not found:
        raise SourceError(f"{where}: the list of categories is empty; list every class with id and name")
    return found


def select_categories(entries: list[dict], novel: Iterable[str], kept: str, source: str, extra: Optional[dict] = None) -> Categories:
    """The classes of a conversion, in the order of `entries`.

    Args:
        entries: of `read_categories`.
        novel: names of the classes held out of training.
        kept: "all", "base" or "novel" classes.
        source: of the vocabulary.
        extra: further entries of vocabulary.json.

    Raises:
        SourceError: a novel name that is no category, or no class left.
    """
    novel = set(novel)
    unknown = novel - {entry["name"] for entry in entries}
    if unknown:
        raise SourceError(f"{source}: the novel class {sorted(unknown)[0]!r} is not among the categories; correct the name")
    chosen = [entry for entry in entries if kept == "all" or (entry["name"] in novel) == (kept == "novel")]
    if not chosen:
        raise SourceError(f"{source}: no {kept} class; name the novel classes, or keep all")
    vocabulary = ClassVocabulary(
        names=tuple(entry["name"] for entry in chosen),
        thing=tuple(entry["isthing"] for entry in chosen),
        novel=tuple(entry["name"] in novel for entry in chosen) if novel else (),
        source=source if kept == "all" else f"{source}, {kept} classes",
        extra={CATEGORY_IDS: [entry["id"] for entry in chosen], **(extra or {})},
    )
    classes: dict[int, Optional[int]] = {entry["id"]: None for entry in entries}
    return Categories(vocabulary, classes | {entry["id"]: k for k, entry in enumerate(chosen)})


def read_segments(path: Path, record: dict, size: tuple[int, int], categories: Categories, where: str) -> tuple[np.ndarray, list[dict]]:
    """(H, W) int32 segment ids and the column `segments` of one photo; segments of classes left out become 0, no segment.

    Args:
        path: the PNG with id = R + 256 G + 65536 B.
        record: of the list `annotations` of a panoptic file, with segments_info.
        size: (H, W) that the file gives for the photo.
        where: stands before the reason of an error about the record.

    Raises:
        FileNotFoundError: there is no PNG.
        SourceError: a PNG that is damaged or of another size, ids of the PNG that are not listed or the reverse, an id listed twice,
            an unknown category, an iscrowd, area or bbox that is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: segment map not found, but {where} names it; copy the folder of PNG files there")
    try:
        segment_map = codec.decode_segment_map(path.read_bytes(), str(path))
    except codec.CodecError as error:
        raise SourceError(str(error)) from error
    if segment_map.shape != size:
        found = f"{segment_map.shape[0]}x{segment_map.shape[1]}"
        raise SourceError(f"{path}: segment map of {found} (height x width), the photo has {size[0]}x{size[1]}; pair the files again")
    listed = _listed_segments(record, where)
    drawn, areas = np.unique(segment_map, return_counts=True)
    area_of = dict(zip(drawn.tolist(), areas.tolist()))
    area_of.pop(0, None)
    unlisted, undrawn = sorted(area_of.keys() - listed.keys()), sorted(listed.keys() - area_of.keys())
    if unlisted:
        raise SourceError(f"{path}: the ids {unlisted[:_SHOWN]} are drawn, but not among segments_info of {where}; add or erase them")
    if undrawn:
        raise SourceError(f"{where}: the segments {undrawn[:_SHOWN]} have no pixel in {path}; leave them out of segments_info")
    segments, dropped = [], []
    for segment_id, info in listed.items():
        place = f"{where}, segment {segment_id}"
        class_id = categories.class_id(info.get("category_id"), place)
        if class_id is None:
            dropped.append(segment_id)
            continue
        about = {"id": segment_id, "class_id": class_id, "is_crowd": _flag(info, "iscrowd", place)}
        box = _box(info["bbox"], place) if "bbox" in info else tight_box(segment_map == segment_id)
        segments.append(about | {"area": int(_area(info, area_of[segment_id], place)), "box": box})
    if dropped:
        segment_map[np.isin(segment_map, dropped)] = 0
    return segment_map, segments


def _listed_segments(record: dict, where: str) -> dict[int, dict]:
    """Segment id -> its entry of segments_info, in file order."""
    infos, listed = record.get("segments_info"), {}
    if not isinstance(infos, list):
        raise SourceError(f"{where}: no list segments_info; is this the panoptic file?")
    for info in infos:
        segment_id = info.get("id") if isinstance(info, dict) else None
        if not _is_whole(segment_id) or not 0 < segment_id < 2**24:
            raise SourceError(f"{where}: segment id {segment_id!r} is not in 1..{2**24 - 1}; correct the record")
        if segment_id in listed:
            raise SourceError(f"{where}: segment id {segment_id} stands twice in segments_info; remove one of them")
        listed[segment_id] = info
    return listed


def segment_entry(segment_map: np.ndarray, segment_id: int, class_id: int, is_crowd: bool) -> dict:
    """The entry of the column `segments` for one id of a segment map, with area and box counted from its pixels."""
    mask = segment_map == segment_id
    return {"id": segment_id, "class_id": class_id, "is_crowd": is_crowd, "area": int(mask.sum()), "box": tight_box(mask)}


def classes_of_segments(segment_map: np.ndarray, segments: list[dict]) -> np.ndarray:
    """(H, W) int32 class ids of a segment map, `IGNORE_INDEX` where there is no segment; crowds have their class."""
    ids, inverse = np.unique(segment_map, return_inverse=True)
    class_of = {segment["id"]: segment["class_id"] for segment in segments}
    table = np.array([class_of.get(i, IGNORE_INDEX) for i in ids.tolist()], dtype=np.int32)
    return table[inverse].reshape(segment_map.shape)


def read_instance(record: dict, size: tuple[int, int], categories: Categories, where: str) -> Optional[tuple[dict, np.ndarray]]:
    """(entry of the column `instances`, its (H, W) bool mask) of an annotation; None for a class that is left out.

    What lies outside the photo is cut off. An object that has no pixel left stays in the list: scores count it as missed, as COCO's do.

    Raises:
        SourceError: as `draw_mask`, an unknown category, an iscrowd, area or bbox that is none.
    """
    class_id = categories.class_id(record["category_id"], where)
    if class_id is None:
        return None
    mask = draw_mask(record.get("segmentation"), *size, where)
    number = record.get("id")
    entry = {"id": number if _is_whole(number) else 0, "class_id": class_id, "is_crowd": _flag(record, "iscrowd", where)}
    entry |= {"area": float(_area(record, int(mask.sum()), where))}
    entry["box"] = _box(record["bbox"], where) if "bbox" in record else tight_box(mask)
    return entry | {"mask": text_of_mask(mask)}, mask


def classes_of_instances(drawn: list[tuple[dict, np.ndarray]], size: tuple[int, int], background: int = IGNORE_INDEX) -> np.ndarray:
    """(H, W) int32 class ids, painted by decreasing area so that small objects lie on top; crowds lie below and have no label."""
    label_map = np.full(size, background, dtype=np.int32)
    for entry, mask in sorted(drawn, key=lambda item: (not item[0]["is_crowd"], -item[0]["area"])):
        label_map[mask] = IGNORE_INDEX if entry["is_crowd"] else entry["class_id"]
    return label_map


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST  # which nan is not


def _flag(record: dict, key: str, where: str, default: bool = False) -> bool:
    """0 or 1, or true or false, of a record; what else can be read as true, such as "0", is an error."""
    value = record.get(key, default)
    if value not in (0, 1):
        raise SourceError(f"{where}: {key} is {value!r}, not 0 or 1; correct the record")
    return bool(value)


def _area(record: dict, counted: int, where: str) -> int | float:
    """The area that a record gives, else the pixels `counted`."""
    area = record.get("area", counted)
    if not _is_number(area) or area < 0:
        raise SourceError(f"{where}: area {area!r} is not a number of pixels; correct the record, or leave area out")
    return area


def _box(bbox, where: str) -> list[float]:
    """[x0, y0, x1, y1] of COCO's [x, y, width, height]."""
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    if not numbers or bbox[2] < 0 or bbox[3] < 0:
        raise SourceError(f"{where}: bbox {bbox!r} is not [x, y, width, height]; correct the record")
    x, y, width, height = (float(v) for v in bbox)
    return [x, y, x + width, y + height]


def tight_box(mask: np.ndarray) -> list[float]:
    """[x0, y0, x1, y1] in pixels around the True pixels of `mask`, ends exclusive; zeros when there is none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0] * 4
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]

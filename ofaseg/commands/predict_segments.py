"""`ofaseg predict --tasks`: panoptic segments and scored objects of a photo as pictures and in COCO's formats."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ofaseg.data import coco_export, codec
from ofaseg.evaluation import pictures, report, segment_pictures
from ofaseg.structures import InstanceSegmentation, PanopticSegmentation
from ofaseg.vocabulary import ClassVocabulary


def write_panoptic(stem: Path, about: dict, image: np.ndarray, found: PanopticSegmentation, vocabulary: ClassVocabulary) -> list[str]:
    """Writes <stem>_panoptic.png (id = R + 256 G + 65536 B), <stem>_panoptic.json (COCO's segments_info and categories, boxes
    [x, y, width, height]) and <stem>_panoptic_overlay.png; returns a line for people per segment, largest first.
    """
    ids = found.segment_map.cpu().numpy()
    categories = coco_export.categories(vocabulary)
    segments = []
    for segment in found.segments:
        category, (x0, y0, x1, y1) = categories[segment["class_id"]], segment["box"]
        entry = {"id": segment["id"], "category_id": category["id"], "category": category["name"], "isthing": int(segment["is_thing"])}
        entry |= {"iscrowd": 0, "area": segment["area"], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": segment["score"]}
        segments.append(entry)
    png = stem.with_name(stem.name + "_panoptic.png")
    pictures.write(png, codec.encode_segment_map(ids))
    content = about | {"file_name": png.name, "segments_info": segments, "categories": categories}
    report.write_json(stem.with_name(stem.name + "_panoptic.json"), content)
    overlay = segment_pictures.panoptic_picture(image, found, vocabulary)
    pictures.write(stem.with_name(stem.name + "_panoptic_overlay.png"), pictures.encode(overlay))
    largest = sorted(segments, key=lambda entry: -entry["area"])
    return [f"{entry['category']} {100 * entry['area'] / ids.size:.1f} %" for entry in largest]


def write_instances(stem: Path, about: dict, image: np.ndarray, found: InstanceSegmentation, vocabulary: ClassVocabulary) -> list[str]:
    """Writes <stem>_instances.json (objects with COCO's run lengths, highest score first) and <stem>_instances_overlay.png; returns a
    line for people per object.
    """
    order = found.scores.argsort(descending=True, stable=True)
    best = InstanceSegmentation(*(part[order].cpu() for part in (found.masks, found.class_ids, found.scores, found.boxes)))
    categories, (height, width) = coco_export.categories(vocabulary), image.shape[:2]
    entries = coco_export.instance_entries(best.masks.numpy(), best.class_ids.tolist(), best.scores.tolist(), best.boxes.tolist())
    objects = []
    for entry in entries:
        category, (x0, y0, x1, y1) = categories[entry["class_id"]], entry["box"]
        about_one = {"id": entry["id"], "category_id": category["id"], "category": category["name"], "score": entry["score"]}
        about_one |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": entry["area"], "iscrowd": 0}
        objects.append(about_one | {"segmentation": {"size": [height, width], "counts": entry["mask"]}})
    report.write_json(stem.with_name(stem.name + "_instances.json"), about | {"annotations": objects, "categories": categories})
    overlay = segment_pictures.instance_picture(image, best, vocabulary)
    pictures.write(stem.with_name(stem.name + "_instances_overlay.png"), pictures.encode(overlay))
    return [f"{entry['category']} {entry['score']:.2f}" for entry in objects]


def with_marks(task) -> ClassVocabulary:
    """The classes of a task of mask proposals with its own marks of countable classes, which free words lack."""
    return replace(task.vocabulary, thing=task.thing_marks)

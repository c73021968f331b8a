"""Average precision of masks (or boxes) of instances through pycocotools, the reference implementation.

Each rank keeps the objects of its photos as run lengths; `compute` joins those of all ranks, so that the score is that of one rank.
"""

import contextlib
import io
import json
import math
from typing import Sequence

import numpy as np
import torch

from ofaseg.evaluation.evaluator import Evaluator, gather_texts
from ofaseg.structures import InstanceSegmentation, SegmentationOutput
from ofaseg.utils.run_lengths import text_of_mask
from ofaseg.vocabulary import ClassVocabulary

ALL, SMALL, MEDIUM, LARGE = range(4)
"""COCO's ranges of true areas: all, below 32**2 pixels, up to 96**2, above."""
_MOST_DETECTIONS = 2
"""Position of 100, the number of objects per class and photo that count, in COCO's list 1, 10, 100."""
KINDS = {"segm": "", "bbox": "box_"}
"""pycocotools' name of what is compared -> how the score's name begins."""


class InstanceEvaluator(Evaluator):
    """Mask AP of the ``instances`` of the outputs.

    A batch needs ``id`` (a number per photo, distinct over ranks), ``native_sizes`` and ``native_instances``: for each photo the
    entries of the column `instances` of a shard (class_id, is_crowd, area, box, mask as COCO's text of run lengths). Without them the
    segments of countable classes are the objects (``native_segment_maps`` and ``native_segments``, see `objects_of_segments`).

    Args:
        vocabulary: K classes; where it marks things, only these are scored.
        kinds: what is compared, of `KINDS`.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: another kind, or no class that can be an object.
    """

    def __init__(self, vocabulary: ClassVocabulary, kinds: Sequence[str] = ("segm",)):
        require_pycocotools()
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"unknown kind {unknown[:1] or kinds}; choose from {', '.join(KINDS)}")
        self.vocabulary, self.kinds = vocabulary, tuple(kinds)
        self.class_ids = [k for k, thing in enumerate(vocabulary.thing or (True,) * len(vocabulary)) if thing]
        if not self.class_ids:
            raise ValueError("AP is about objects, and these classes are all marked as stuff; leave out the task instance, or mark things")
        self.reset()

    def reset(self) -> None:
        self._photos: list[str] = []

    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        """Raises ValueError for rows without objects, outputs without them, and masks of another size than the photo."""
        truths, sizes = batch.get("native_instances"), batch.get("native_sizes")
        if truths is None and batch.get("native_segments") is not None:
            pairs = zip(batch["native_segment_maps"], batch["native_segments"])
            truths = [objects_of_segments(torch.as_tensor(ids).cpu().numpy(), segments, self.class_ids) for ids, segments in pairs]
        if truths is None or sizes is None or not len(truths) == len(sizes) == len(outputs):
            raise ValueError("these rows carry no objects, so AP cannot be scored; evaluate a split with the column instances or segments")
        for number, output, truth, size in zip(torch.as_tensor(batch["id"]).tolist(), outputs, truths, sizes):
            if output.instances is None:
                raise ValueError("the model made no instances; score mIoU, or choose a model that finds objects")
            size = [int(size[0]), int(size[1])]
            photo = {"id": int(number), "size": size, "truth": truth, "found": _found(output.instances, size)}
            self._photos.append(json.dumps(photo))

    def compute(self) -> dict:
        """`instance_scores` of the photos of all ranks with their number ``images``."""
        photos = sorted((json.loads(text) for text in gather_texts(self._photos)), key=lambda photo: photo["id"])
        return self._scores(photos) | {"class_names": list(self.vocabulary.names), "images": len(photos)}

    def _scores(self, photos: list[dict]) -> dict:
        truth, found = self._coco(photos, "truth"), self._coco(photos, "found")
        scores = {}
        for kind in self.kinds:
            precision, recall = evaluate_coco(truth, found, kind, [k + 1 for k in self.class_ids])
            scores |= {
                KINDS[kind] + key: value for key, value in instance_scores(precision, recall, self.vocabulary, self.class_ids).items()
            }
        return scores

    def _coco(self, photos: list[dict], part: str):
        """The objects of all photos as pycocotools holds them; ids start at 1, for 0 means "no match" there."""
        annotations = []
        for photo in photos:
            for entry in photo[part]:
                x0, y0, x1, y1 = entry["box"]
                about = {"id": len(annotations) + 1, "image_id": photo["id"], "category_id": entry["class_id"] + 1}
                about |= {"iscrowd": int(entry.get("is_crowd", False)), "area": entry["area"], "bbox": [x0, y0, x1 - x0, y1 - y0]}
                about |= {"segmentation": {"size": photo["size"], "counts": entry["mask"]}}
                annotations.append(about | ({"score": entry["score"]} if "score" in entry else {}))
        images = [{"id": photo["id"], "height": photo["size"][0], "width": photo["size"][1]} for photo in photos]
        return coco_of(images, annotations, self.vocabulary, self.class_ids)


def _found(instances: InstanceSegmentation, size: list[int]) -> list[dict]:
    masks, boxes = instances.masks.cpu().numpy().astype(bool), instances.boxes.cpu().tolist()
    if len(masks) and list(masks.shape[1:]) != size:
        raise ValueError(f"predicted masks of {masks.shape[1:]} pixels for a photo of {tuple(size)}; resize them to the photo")
    entries = zip(masks, boxes, instances.class_ids.cpu().tolist(), instances.scores.cpu().tolist())
    return [
        {"class_id": class_id, "score": score, "area": int(mask.sum()), "box": box, "mask": text_of_mask(mask)}
        for mask, box, class_id, score in entries
    ]


def objects_of_segments(segment_map: np.ndarray, segments: Sequence[dict], class_ids: Sequence[int]) -> list[dict]:
    """Entries as of the column `instances`: the segments of some classes as objects that do not overlap."""
    return [
        {"class_id": entry["class_id"], "is_crowd": bool(entry.get("is_crowd", False)), "area": float(mask.sum())}
        | {"box": _box(mask), "mask": text_of_mask(mask)}
        for entry in segments
        if entry["class_id"] in class_ids and (mask := segment_map == entry["id"]).any()
    ]


def _box(mask: np.ndarray) -> list[float]:
    """[x0, y0, x1, y1] around a mask with pixels, ends exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def require_pycocotools() -> None:
    """Raises ImportError with what to install."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "average precision of instances is computed by pycocotools, which is not installed: pip install pycocotools (or ofaseg[coco])"
        ) from error


def coco_of(images: list[dict], annotations: list[dict], vocabulary: ClassVocabulary, class_ids: Sequence[int]):
    """A pycocotools `COCO` of these records; category k + 1 is class k."""
    from pycocotools.coco import COCO

    coco = COCO()
    categories = [{"id": k + 1, "name": vocabulary.names[k]} for k in class_ids]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def evaluate_coco(truth, found, kind: str, category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's precision (T, R, K, A, M) and recall (T, K, A, M), -1 where a category has no object in the truth.

    T IoU thresholds 0.5..0.95, R recalls 0..1, K categories, A area ranges (`ALL` to `LARGE`), M limits of detections.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def instance_scores(precision: np.ndarray, recall: np.ndarray, vocabulary: ClassVocabulary, class_ids: Sequence[int]) -> dict:
    """AP and its relatives in 0..1, nan where there is no object to find.

    Args:
        precision, recall: of `evaluate_coco`, with one category per entry of `class_ids`.

    Returns:
        dict with AP (mean over IoU 0.5..0.95), AP50, AP75, AP_small, AP_medium, AP_large, AR (at most 100 objects);
        ``AP_per_class`` (list of K, nan for classes without object); with novel classes base_AP, novel_AP and the same for AP50,
        means over the classes with an object.
    """
    limited = precision[..., _MOST_DETECTIONS]
    scores = {"AP": _mean(limited[..., ALL]), "AP50": _mean(limited[0, ..., ALL]), "AP75": _mean(limited[5, ..., ALL])}
    scores |= {f"AP_{name}": _mean(limited[..., area]) for name, area in (("small", SMALL), ("medium", MEDIUM), ("large", LARGE))}
    scores["AR"] = _mean(recall[:, :, ALL, _MOST_DETECTIONS])
    per_class = {
        "AP": [_mean(limited[:, :, k, ALL]) for k in range(len(class_ids))],
        "AP50": [_mean(limited[0, :, k, ALL]) for k in range(len(class_ids))],
    }
    of_all = np.full(len(vocabulary), math.nan)
    of_all[list(class_ids)] = per_class["AP"]
    scores["AP_per_class"] = of_all.tolist()
    if any(vocabulary.novel):
        novel = np.array(vocabulary.novel, dtype=bool)[list(class_ids)]
        for key, values in per_class.items():
            for name, members in (("base", ~novel), ("novel", novel)):
                known = np.array(values)[members]
                known = known[~np.isnan(known)]
                scores[f"{name}_{key}"] = float(known.mean()) if len(known) else math.nan
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not -1; nan when there is none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan

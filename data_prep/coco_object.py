"""COCO-Object: COCO 2017 photos with the 80 thing classes and background, which SimSeg calls "COCO Stuff".

The layouts are those of `data_prep/coco_stuff.py`; things get 1..80, every stuff class and every pixel without label becomes
0, background. Four kinds of labels are read (`--label-files`):

- pixel-maps: `<id>.png`, the official pixel maps. Chosen where there are any.
- instances: `ROOT/annotations/instances_{train2017,val2017}.json` and photos alone, chosen without a folder of label maps. Polygons
  (with pycocotools) and run lengths are drawn by decreasing area, so that small objects lie on top; everything else is
  background. Crowds have no outlines of their own and get no label where no object covers them. Objects are coarser here than
  in the pixel maps.
- train-ids: `<id>_labelTrainIds.png` of mmsegmentation, 0..170 and 255.
- object-ids: `<id>_labelTrainIds.png` of SimSeg's conversion, already 0..80.

The last two bear the same names and mean other classes, so they are never chosen by themselves.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.annotation_file import AnnotatedPhoto, AnnotationFile, AnnotationSource
from data_prep.coco_stuff import NUM_THINGS, CocoStuffSource, label_table
from data_prep.mask_drawing import draw_mask
from data_prep.paired import find_folder, look_up, read_class_names, value_table
from data_prep.source import Source, SourceError, read_label_file
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

SPLITS = ("train", "val")
_BACKGROUND = 0
_UNLABELLED = 255


def vocabulary() -> ClassVocabulary:
    """Background and the 80 things in COCO's order."""
    names = read_class_names("coco_object81")
    return ClassVocabulary(names=names, thing=tuple(k > 0 for k in range(len(names))), source="COCO-Object, 81 classes")


class CocoObjectSource(CocoStuffSource):
    """The photos of one split with label maps. Arguments and errors as `coco_stuff.CocoStuffSource`.

    Args:
        label_files: "pixel-maps", "train-ids", "object-ids", or "auto".

    Raises:
        SourceError: with "auto", there is no pixel map but files of two possible meanings.
    """

    def __init__(self, root, split: str, label_files: str = "auto", on_bad_sample: str = "raise"):
        self.object_ids = label_files == "object-ids"
        stuff_classes = np.arange(171)
        classes = np.where(stuff_classes < NUM_THINGS, stuff_classes + 1, _BACKGROUND).astype(np.int32)
        super().__init__(root, split, vocabulary(), classes, "train-ids" if self.object_ids else label_files, on_bad_sample)
        if label_files == "auto" and self.train_ids:
            choice = "--label-files train-ids for mmsegmentation's (0..170 and 255), object-ids for SimSeg's (0..80)"
            raise SourceError(f"{self.pairs[0].label_map}: files of this name mean 171 or 81 classes; choose {choice}")
        self.table[_UNLABELLED] = _BACKGROUND
        if self.object_ids:
            self.table = value_table(range(NUM_THINGS + 1), ())

    def read_label_map(self, path: Path) -> np.ndarray:
        if self.object_ids:
            return look_up(read_label_file(path), self.table, path, "object ids are 0..80; are these train ids of 171 classes?")
        return super().read_label_map(path)


class CocoInstancesSource(AnnotationSource):
    """The photos of one split of COCO 2017, or of another `year`, drawn from the instances.

    Raises:
        FileNotFoundError: the photos or the JSON file are missing.
        SourceError: the JSON cannot be read, or its categories are not COCO's 80.
    """

    def __init__(self, root, split: str, year: str = "2017"):
        images = find_folder(root, [f"{above}{name}" for above in ("images/", "") for name in (f"{split}{year}", split)], "photos")
        annotations = AnnotationFile(Path(root) / "annotations" / f"instances_{split}{year}.json")
        super().__init__(vocabulary(), annotations, annotations.photos, images)
        self.classes = self._classes_of_categories()

    def _classes_of_categories(self) -> dict[int, int]:
        """COCO's category id -> class 1..80, by its number; the names have to agree."""
        table = label_table(train_ids=False)
        classes = {value + 1: k + 1 for value, k in enumerate(table.tolist()) if 0 <= k < NUM_THINGS}
        for category in self.annotations.categories:
            k = classes.get(category.get("id")) if isinstance(category, dict) else None
            if k is None or category.get("name") != self.vocabulary.names[k]:
                expected = f"COCO's {self.vocabulary.names[k]!r}" if k else "one of COCO's 80"
                raise SourceError(f"{self.annotations.path}: category {category} is not {expected}; is this the file of another dataset?")
        return classes

    def draw(self, photo: AnnotatedPhoto) -> np.ndarray:
        drawn = []
        for where, record in self.annotations.annotations(photo):
            if record["category_id"] not in self.classes:
                raise SourceError(f"{where}: category_id {record['category_id']} is none of COCO's 80; is it another file?")
            mask = draw_mask(record.get("segmentation"), photo.height, photo.width, where)
            is_crowd, area = bool(record.get("iscrowd")), record.get("area")
            area = float(area) if isinstance(area, int | float) else float(mask.sum())
            drawn.append((not is_crowd, -area, IGNORE_INDEX if is_crowd else self.classes[record["category_id"]], mask))
        label_map = np.full((photo.height, photo.width), _BACKGROUND, dtype=np.int32)
        for _, _, k, mask in sorted(drawn, key=lambda item: item[:2]):
            label_map[mask] = k
        return label_map


def add_arguments(parser) -> None:
    """Options of this dataset."""
    choices = ("auto", "pixel-maps", "train-ids", "object-ids", "instances")
    parser.add_argument("--label-files", default="auto", choices=choices, help="kind of labels, see data_prep/coco_object.py")


def open_split(root, split: str, args: argparse.Namespace) -> Source:
    """The photos of a split. Raises as `CocoObjectSource` and `CocoInstancesSource`."""
    if args.label_files == "instances" or (args.label_files == "auto" and _only_instances(Path(root), split)):
        return CocoInstancesSource(root, split)
    return CocoObjectSource(root, split, args.label_files, getattr(args, "on_bad_sample", "raise"))


def _only_instances(root: Path, split: str) -> bool:
    folders = (root / above / name for above in ("annotations", "stuffthingmaps", "labels") for name in (f"{split}2017", split))
    return (root / "annotations" / f"instances_{split}2017.json").is_file() and not any(folder.is_dir() for folder in folders)

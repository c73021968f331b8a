"""Any data in COCO's formats: photos with a panoptic file, with an instances file, or with both.

    ROOT/annotations/panoptic_<split>.json and ROOT/annotations/panoptic_<split>/<stem>.png   (or ROOT/panoptic_<split>/)
    ROOT/annotations/instances_<split>.json
    ROOT/images/<split>/<file_name>                                                           (or ROOT/<split>/)

`--panoptic`, `--instances` and `--photos` name other places, for one split, as paths of their own or below ROOT; with all that is
needed named, ROOT may be left out. `<file_name>` may hold folders. The classes are the `categories` of the files in their order;
both files have to agree on them. `--novel` names the classes held out of training, `--classes base` keeps the others alone: what
belongs to no class kept has no label.

The segments of a panoptic file become `segment_map` and `segments`, the objects of an instances file become `instances`, each with its
own mask, so that they may overlap. Label maps come from the segments, where there are any, else from the objects: small ones lie on
top, crowds and what lies under no object have no label. Without what objects are not, a model cannot learn it: `--background NAME`
makes a class, the last one, of what lies under no object. Every segment has to be drawn and listed, and every category known.
"""

import argparse
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Optional

from data_prep.annotation_file import AnnotatedPhoto, AnnotationFile, path_within
from data_prep.coco_segments import (
    CATEGORY_IDS,
    Categories,
    classes_of_instances,
    classes_of_segments,
    read_categories,
    read_instance,
    read_segments,
    select_categories,
)
from data_prep.paired import find_folder, photo_bytes
from data_prep.source import Source, SourceError
from ofaseg.vocabulary import IGNORE_INDEX, parse_class_names

logger = logging.getLogger(__name__)

KEPT = ("all", "base", "novel")
KINDS = ("panoptic", "instances")


class PanopticFile:
    """The segments of a panoptic file and of the PNG files in `folder`; picklable.

    Raises:
        FileNotFoundError, SourceError: as `AnnotationFile`; a photo with two records.
    """

    def __init__(self, path, folder):
        self.annotations, self.folder = AnnotationFile(path, nested=True), Path(folder)

    def record(self, photo: AnnotatedPhoto) -> tuple[str, dict]:
        """(where it stands, the record of a photo). Raises SourceError when there is none, or more than one."""
        found = list(self.annotations.records(photo))
        if len(found) != 1 or not isinstance(found[0][1].get("file_name"), str):
            problem = f"{len(found)} records of image_id {photo.id} ({photo.file_name}), each with the file_name of a PNG; expected one"
            raise SourceError(f"{self.annotations.path}: {problem}. Correct the list of annotations")
        return found[0]

    def path(self, record: dict) -> Path:
        """The PNG of a record, below `folder` as its file_name says. Raises SourceError for a file_name that leads out of it."""
        return placed(self.folder, path_within(record["file_name"], str(self.annotations.path)).as_posix())


def placed(folder: Path, file_name: str) -> Path:
    """Where a file of `folder` is: at `file_name`, or by its bare name where the folders in it are not there, as in some copies."""
    path = folder / file_name
    bare = folder / path.name
    return bare if not path.is_file() and bare.is_file() else path


class CocoFormatSource(Source):
    """The photos of one split.

    Args:
        categories: the classes kept.
        photos: folder of the photos.
        panoptic: their segments, or None.
        instances: their objects, or None; needed without `panoptic`.
        background: class id of what lies under no object, for label maps made from objects; None for no label.

    Raises:
        SourceError: neither, or no photo.
    """

    def __init__(
        self,
        categories: Categories,
        photos: Path,
        panoptic: Optional[PanopticFile] = None,
        instances: Optional[AnnotationFile] = None,
        background: Optional[int] = None,
    ):
        if panoptic is None and instances is None:
            raise SourceError(f"{photos}: neither a panoptic nor an instances file; name one by --panoptic or --instances")
        self.categories, self.vocabulary = categories, categories.vocabulary
        self.folder, self.panoptic, self.instances = photos, panoptic, instances
        self.background = IGNORE_INDEX if background is None else background
        listing = instances if panoptic is None else panoptic.annotations
        self.listing, self.photos = listing.path, listing.photos
        if not self.photos:
            raise SourceError(f"{listing.path}: no photo in the list 'images'; is this the file of another split?")
        stems = Counter(Path(photo.file_name).stem for photo in self.photos)
        self._repeated_stems = frozenset(stem for stem, count in stems.items() if count > 1)
        self.columns = ("image", "label_map", "id")
        self.columns += ("segment_map", "segments") if panoptic is not None else ()
        self.columns += ("instances",) if instances is not None else ()

    def __len__(self) -> int:
        return len(self.photos)

    def name(self, i: int) -> str:
        file_name = self.photos[i].file_name
        # of photos that share a stem, one in no folder may be any of them
        return str(self.folder / file_name if Path(file_name).stem in self._repeated_stems else placed(self.folder, file_name))

    def sample_id(self, i: int) -> str:
        """The stem of a photo; with its folders where several photos have that stem."""
        path = Path(self.photos[i].file_name)
        return path.with_suffix("").as_posix() if path.stem in self._repeated_stems else path.stem

    def files(self, i: int) -> tuple[str, ...]:
        files = [self.name(i)]
        if self.panoptic is not None:
            drawn = Path(self.photos[i].file_name).with_suffix(".png").as_posix()
            files += [str(placed(self.panoptic.folder, drawn)), str(self.panoptic.annotations.path)]
        return (*files, str(self.instances.path)) if self.instances is not None else tuple(files)

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError for a missing photo or PNG, SourceError for records that cannot be used."""
        photo = self.photos[i]
        path = Path(self.name(i))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: photo not found, but {self.listing} lists it; copy it there")
        sample = {"id": self.sample_id(i), "image": photo_bytes(path)}
        if self.instances is not None:
            drawn = self.objects(photo)
            sample["instances"] = [entry for entry, _ in drawn]
            sample["label_map"] = classes_of_instances(drawn, (photo.height, photo.width), self.background)
        if self.panoptic is not None:
            segment_map, segments = self.segments(photo)
            sample |= {"segment_map": segment_map, "segments": segments, "label_map": classes_of_segments(segment_map, segments)}
        return sample

    def segments(self, photo: AnnotatedPhoto):
        """(segment map, segments) of a photo, see `read_segments`."""
        where, record = self.panoptic.record(photo)
        return read_segments(self.panoptic.path(record), record, (photo.height, photo.width), self.categories, where)

    def objects(self, photo: AnnotatedPhoto) -> list:
        """(entry of `instances`, mask) of each object of a photo, see `read_instance`."""
        size = (photo.height, photo.width)
        found = [read_instance(record, size, self.categories, where) for where, record in self.instances.annotations(photo)]
        return [one for one in found if one is not None]


def common_categories(panoptic: Optional[PanopticFile], instances: Optional[AnnotationFile]) -> tuple[list[dict], str]:
    """(entries, file) of the categories that the files share.

    Raises:
        SourceError: as `read_categories`; an instances file with a category that the panoptic file does not have.
    """
    if panoptic is None:
        return read_categories(instances.categories, str(instances.path)), str(instances.path)
    path = panoptic.annotations.path
    entries = read_categories(panoptic.annotations.categories, str(path))
    if instances is not None:
        names = {entry["id"]: entry["name"] for entry in entries}
        for entry in read_categories(instances.categories, str(instances.path)):
            if names.get(entry["id"]) != entry["name"]:
                there = names.get(entry["id"], "nothing")
                problem = f"category {entry['id']} is {entry['name']!r}, in {path} it is {there!r}"
                raise SourceError(f"{instances.path}: {problem}; convert them one by one, or make them agree")
    return entries, str(path)


def open_files(root, split: str, panoptic: str = "", instances: str = "", photos: str = ""):
    """(folder of photos, panoptic file or None, instances file or None) of a split, looked for where nothing is named.

    Raises:
        FileNotFoundError: what is named is not there, or nothing was found.
    """
    root = Path(root or ".")
    panoptic, instances, photos = (_below(root, path) for path in (panoptic, instances, photos))
    if photos:
        folder = Path(photos)
        if not folder.is_dir():
            raise FileNotFoundError(f"{photos}: no such folder; --photos is the folder of the photos")
    else:
        folder = find_folder(root, [f"images/{split}", split], "photos")
    panoptic_path = Path(panoptic) if panoptic else root / "annotations" / f"panoptic_{split}.json"
    instances_path = Path(instances) if instances else root / "annotations" / f"instances_{split}.json"
    found = None
    if panoptic or panoptic_path.is_file():
        beside = panoptic_path.with_suffix("")
        maps = beside if beside.is_dir() else find_folder(root, [f"annotations/{beside.name}", beside.name], "segment maps")
        found = PanopticFile(panoptic_path, maps)
    objects = AnnotationFile(instances_path, nested=True) if instances or instances_path.is_file() else None
    if found is None and objects is None:
        raise FileNotFoundError(f"{panoptic_path} or {instances_path}: not found; copy one there, or name it by --panoptic or --instances")
    return folder, found, objects


def _below(root: Path, path: str) -> str:
    """A path as it was given, or below `root` where it is only there."""
    return str(root / path) if path and not Path(path).exists() and (root / path).exists() else path


def needs_root(args: argparse.Namespace) -> bool:
    """Whether something has to be looked for."""
    return not (args.photos and (args.panoptic or args.instances))


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits that have a file below ROOT/annotations; those asked for where files are named."""
    if args.panoptic or args.instances:
        return [split.strip() for split in args.splits.split(",")] if args.splits else ["train"]
    stems = [path.stem for kind in KINDS for path in sorted((Path(root) / "annotations").glob(f"{kind}_*.json"))]
    splits = sorted({stem.split("_", 1)[1] for stem in stems})
    if not splits:
        raise SourceError(f"{root}: no annotations/panoptic_<split>.json or instances_<split>.json; name one by --panoptic or --instances")
    return splits


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--panoptic", default="", metavar="JSON", help="panoptic file; its PNG files lie in the folder of its name")
    parser.add_argument("--instances", default="", metavar="JSON", help="instances file")
    parser.add_argument("--photos", default="", metavar="FOLDER", help="folder of the photos")
    parser.add_argument("--background", default="", metavar="NAME", help="class of what lies under no object (default: no label)")
    parser.add_argument("--novel", default="", help="classes held out of training: file with one name per line, or a comma list")
    parser.add_argument("--classes", default="all", choices=KEPT, help="classes to keep; what belongs to others has no label")


def open_split(root, split: str, args: argparse.Namespace) -> CocoFormatSource:
    """The photos of a split. Raises as `CocoFormatSource`, `open_files` and `common_categories`."""
    photos, panoptic, instances = open_files(root, split, args.panoptic, args.instances, args.photos)
    entries, where = common_categories(panoptic, instances)
    novel = parse_class_names(args.novel) if args.novel else ()
    categories, background = select_categories(entries, novel, args.classes, where), None
    if args.background:
        if panoptic is not None or args.classes != "all":
            raise SourceError(
                f"--background {args.background}: for all classes of an instances file alone; what is drawn is known only there"
            )
        categories, background = with_background(categories, args.background, where), len(categories.vocabulary)
    lost = [] if instances is None else instances.without_photo()
    if lost:
        logger.warning(
            "%s: %d annotations are left out, their image_id is that of no photo (the first is annotation %d)",
            instances.path, len(lost), lost[0],
        )  # fmt: skip
    return CocoFormatSource(categories, photos, panoptic, instances, background)


def with_background(categories: Categories, name: str, where: str) -> Categories:
    """The same with one more class, which no category stands for. Raises SourceError for a name that is there."""
    known = categories.vocabulary
    if name in known.names:
        raise SourceError(f"{where}: --background {name!r} is one of the categories; give another name, or leave the option out")
    novel = (*known.novel, False) if known.novel else ()
    ids = known.extra[CATEGORY_IDS]
    extra = known.extra | {CATEGORY_IDS: [*ids, max(ids) + 1]}
    vocabulary = replace(known, names=(*known.names, name), thing=(*known.thing, False), novel=novel, palette=(), extra=extra)
    return Categories(vocabulary, categories.classes)

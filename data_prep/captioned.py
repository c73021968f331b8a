"""Datasets of photos with captions and without label maps: what their converters share."""

import gzip
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple, Optional

from data_prep.paired import photo_bytes
from data_prep.source import Source, SourceError

logger = logging.getLogger(__name__)

KARPATHY_SPLITS = ("train", "val", "test")
_IN_TRAIN = ("train", "restval")


class CaptionedPhoto(NamedTuple):
    """A photo and its captions, in the order of the annotations; `name` is the path below the folder of photos."""

    id: str
    name: str
    captions: tuple[str, ...]


class CaptionSource(Source):
    """Photos with captions. A photo that is not there is a sample whose reading raises, so that it is counted and named.

    Args:
        folders: where photos lie; the first that has a file of the name is read.
        photos: in the order of the annotations.

    Raises:
        SourceError: no photo is listed.
    """

    columns = ("image", "id", "captions")

    def __init__(self, folders: list[Path], photos: list[CaptionedPhoto], listing: Path):
        if not photos:
            raise SourceError(f"{listing}: lists no photo with a caption for this split; check that the file is complete")
        self.folders, self.photos, self.listing = folders, photos, str(listing)
        logger.info("%s: captions of %d photos", listing, len(photos))  # there may be other lists beside it

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError for a photo that is not there, SourceError for one that cannot be decoded."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} is outside 0..{len(self) - 1}")
        photo, path = self.photos[i], self._path(i)
        if path is None:
            expected = " or ".join(str(folder / photo.name) for folder in self.folders)
            cure = "copy it, or leave such photos out with --on-bad-sample skip"
            raise FileNotFoundError(f"{expected}: photo not found, though {self.listing} lists it; {cure}")
        return {"id": photo.id, "image": photo_bytes(path), "captions": list(photo.captions)}

    def _path(self, i: int) -> Optional[Path]:
        return next((folder / self.photos[i].name for folder in self.folders if (folder / self.photos[i].name).is_file()), None)

    def name(self, i: int) -> str:
        return str(self._path(i) or self.folders[0] / self.photos[i].name)

    def files(self, i: int) -> tuple[str, ...]:
        return self.name(i), self.listing


def photo_folders(root, candidates: list[str], what: str) -> list[Path]:
    """The folders `candidates` below `root` that are there.

    Raises:
        FileNotFoundError: none is; the message lists them.
    """
    found = [Path(root) / candidate for candidate in candidates if (Path(root) / candidate).is_dir()]
    if not found:
        expected = " or ".join(str(Path(root) / candidate) for candidate in candidates)
        raise FileNotFoundError(f"{root}: no folder of {what}; expected {expected}. Give the folder above it as --root")
    return found


def find_file(root, candidates: list[str]) -> Optional[Path]:
    """The first of the files `candidates` below `root` that is there."""
    return next((Path(root) / candidate for candidate in candidates if (Path(root) / candidate).is_file()), None)


def read_json(path: Path) -> dict:
    """The object in a JSON file, which may be gzipped (.gz). Raises SourceError when there is none."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise SourceError(f"{path}: not a complete JSON file ({error}); copy or unpack it again") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: needs a JSON object at its top; is it another file?")
    return data


def karpathy_photos(path: Path, split: str) -> list[CaptionedPhoto]:
    """The photos of a split in a list of Karpathy and Fei-Fei (dataset_coco.json, dataset_flickr30k.json).

    Split train takes in the photos marked restval. The id is the file name without its suffix.

    Raises:
        SourceError: the file has another layout.
    """
    names = _IN_TRAIN if split == "train" else (split,)
    entries = read_json(path).get("images")
    cure = "it needs images with filename, split and sentences of raw texts, as in the published lists"
    if not isinstance(entries, list):
        raise SourceError(f"{path}: no list of images; {cure}")
    photos = []
    for number, entry in enumerate(entries):
        try:
            if entry["split"] in names:
                name = "/".join(part for part in (entry.get("filepath", ""), entry["filename"]) if part)
                captions = tuple(_clean(sentence["raw"]) for sentence in entry["sentences"])
                photos.append(CaptionedPhoto(Path(entry["filename"]).stem, name, captions))
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path}: images[{number}] is another thing ({error!r}); {cure}") from error
    return photos


def coco_photos(path: Path) -> list[CaptionedPhoto]:
    """The photos of COCO's own caption annotations, in the order of their images. The id is the file name without its suffix.

    Captions of an image that is not listed are left out with a warning; so are images without a caption.

    Raises:
        SourceError: the file has another layout.
    """
    data = read_json(path)
    captions = defaultdict(list)
    try:
        for entry in data["annotations"]:
            captions[entry["image_id"]].append(_clean(entry["caption"]))
        images = {entry["id"]: entry["file_name"] for entry in data["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"not COCO's caption annotations ({error!r})"
        raise SourceError(f"{path}: {problem}; it needs images (id, file_name) and annotations (image_id, caption)") from error
    unknown = sum(len(texts) for image_id, texts in captions.items() if image_id not in images)
    without = sum(image_id not in captions for image_id in images)
    if unknown or without:
        logger.warning("%s: %d captions of photos that are not listed and %d photos without caption are left out", path, unknown, without)
    return [CaptionedPhoto(Path(name).stem, name, tuple(captions[i])) for i, name in images.items() if i in captions]


def _clean(caption: str) -> str:
    """The caption on one line: published captions have line breaks and double blanks in them."""
    return " ".join(caption.split())

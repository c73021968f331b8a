"""Flickr30k (Young et al. 2014): 31,783 photos with five captions each, without label maps.

    ROOT/flickr30k-images/<file>.jpg        (or flickr30k_images, images)
    ROOT/dataset_flickr30k.json             the splits of Karpathy and Fei-Fei (2015): 29,000 train, 1,014 val, 1,000 test photos;
                                            by them retrieval is measured
    ROOT/results_20130124.token             or the captions alone, as the authors give them: <file>.jpg#<k>, tab, caption;
    ROOT/results.csv                        or as on Kaggle: image_name| comment_number| comment

Without Karpathy's list there are no splits: all photos are split train, and the log says so. Samples are called by the file names
without .jpg. Photos that a list names and that are not there stop the conversion, or are counted under `--on-bad-sample skip`.
"""

import argparse
import logging
from pathlib import Path
from typing import Optional

from data_prep.captioned import KARPATHY_SPLITS, CaptionedPhoto, CaptionSource, find_file, karpathy_photos, photo_folders
from data_prep.source import SourceError

logger = logging.getLogger(__name__)

KARPATHY = "dataset_flickr30k.json"
PLAIN = ("results_20130124.token", "results.csv")
_PHOTOS = ["flickr30k-images", "flickr30k_images", "images"]


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """train, val and test, or train alone. Raises FileNotFoundError without a list of captions."""
    return list(KARPATHY_SPLITS) if _listing(root).name == KARPATHY else ["train"]


def _listing(root) -> Path:
    found = find_file(root, [f"{below}{name}" for name in (KARPATHY, *PLAIN) for below in ("", f"{_PHOTOS[0]}/", f"{_PHOTOS[1]}/")])
    if found is None:
        expected = " or ".join(str(Path(root) / name) for name in (KARPATHY, *PLAIN))
        raise FileNotFoundError(f"{root}: no list of captions; expected {expected}. Give the folder that holds it as --root")
    return found


def open_split(root, split: str, args: argparse.Namespace) -> CaptionSource:
    """The photos of a split with their captions.

    Raises:
        FileNotFoundError: the list or the folder of photos is missing.
        SourceError: the list has another layout.
    """
    listing = _listing(root)
    folders = photo_folders(root, _PHOTOS, "photos")
    folders += [folder / folder.name for folder in folders if (folder / folder.name).is_dir()]  # Kaggle's archive nests them
    if listing.name == KARPATHY:
        return CaptionSource(folders, karpathy_photos(listing, split), listing)
    logger.warning("%s tells no splits: split train is all photos; put %s beside it for the usual ones", listing, KARPATHY)
    return CaptionSource(folders, plain_photos(listing), listing)


def plain_photos(path: Path) -> list[CaptionedPhoto]:
    """The photos of results_20130124.token or results.csv, in the order in which they come first.

    Lines that are no caption are left out, with one warning that counts them (Kaggle's file has one of 158,915).

    Raises:
        SourceError: not UTF-8, or no line is a caption.
    """
    captions: dict[str, list[str]] = {}
    bad: list[int] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                name, caption = _csv_line(line) if path.suffix == ".csv" else _token_line(line)
                if name and caption:
                    captions.setdefault(name, []).append(caption)
                elif line.strip() and not (number == 1 and path.suffix == ".csv"):
                    bad.append(number)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error}); copy it again") from error
    if not captions:
        raise SourceError(f"{path}: no line is a caption; see the docstring of data_prep/flickr30k.py for the layout")
    if bad:
        total = sum(map(len, captions.values())) + len(bad)
        logger.warning("%s: %d of %d lines are no caption and left out, the first is line %d", path, len(bad), total, bad[0])
    return [CaptionedPhoto(Path(name).stem, name, tuple(texts)) for name, texts in captions.items()]


def _token_line(line: str) -> tuple[Optional[str], str]:
    place, _, caption = line.partition("\t")
    name, _, number = place.rpartition("#")
    return (name or None) if number.strip().isdigit() else None, caption.strip()


def _csv_line(line: str) -> tuple[Optional[str], str]:
    fields = [field.strip() for field in line.split("|", 2)]
    return (fields[0], fields[2]) if len(fields) == 3 and fields[1].isdigit() else (None, "")

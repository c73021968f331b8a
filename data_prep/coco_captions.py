"""COCO captions (Chen et al. 2015): photos with about five captions each, without label maps.

COCO's own annotations and splits:

    ROOT/annotations/captions_{train,val}2017.json      (or 2014; or ROOT/captions_...; also .json.gz)
    ROOT/{train,val}2017/<file>.jpg                     (or ROOT/images/{train,val}2017)

The splits of Karpathy and Fei-Fei (2015), by which retrieval is measured (5,000 photos each in val and test):

    ROOT/dataset_coco.json
    ROOT/{train,val}2014/COCO_{train,val}2014_<id>.jpg  (or below ROOT/images)

Where both lists are there, Karpathy's is read; `--captions 2017` (or 2014) chooses the others. Samples are called by the file names
without .jpg. Photos that a list names and that are not there stop the conversion, or are counted under `--on-bad-sample skip`.
"""

import argparse
from pathlib import Path

from data_prep.captioned import KARPATHY_SPLITS, CaptionSource, coco_photos, find_file, karpathy_photos, photo_folders

LISTS = ("karpathy", "2017", "2014")
_COCO_SPLITS = ("train", "val")


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--captions", default="auto", choices=("auto", *LISTS), help="which list of captions (default: the first there is)")


def _candidates(chosen: str, split: str) -> list[str]:
    if chosen == "karpathy":
        return ["dataset_coco.json", "annotations/dataset_coco.json"]
    name = f"captions_{split}{chosen}.json"
    return [f"{folder}{name}{packed}" for folder in ("annotations/", "") for packed in ("", ".gz")]


def _choose(root, given: str) -> str:
    """One of `LISTS`. Raises FileNotFoundError when `root` has none."""
    candidates = LISTS if given == "auto" else (given,)
    for chosen in candidates:
        if any(find_file(root, _candidates(chosen, split)) for split in _COCO_SPLITS):
            return chosen
    expected = " or ".join(str(Path(root) / _candidates(chosen, "train")[0]) for chosen in candidates)
    raise FileNotFoundError(f"{root}: no list of captions; expected {expected}. Give the folder of annotations/ as --root")


def list_splits(root, args: argparse.Namespace) -> list[str]:
    """The splits whose list is there. Raises FileNotFoundError without any."""
    chosen = _choose(root, args.captions)
    if chosen == "karpathy":
        return list(KARPATHY_SPLITS)
    return [split for split in _COCO_SPLITS if find_file(root, _candidates(chosen, split))]


def open_split(root, split: str, args: argparse.Namespace) -> CaptionSource:
    """The photos of a split with their captions.

    Raises:
        FileNotFoundError: the list or the folder of photos is missing.
        SourceError: the list has another layout.
    """
    chosen = _choose(root, args.captions)
    listing = find_file(root, _candidates(chosen, split))
    if chosen == "karpathy":
        photo_folders(root, [f"{above}{name}2014" for above in ("images/", "") for name in _COCO_SPLITS], "photos")
        return CaptionSource([Path(root) / "images", Path(root)], karpathy_photos(listing, split), listing)
    folders = photo_folders(root, [f"{above}{split}{chosen}" for above in ("images/", "")], "photos")
    return CaptionSource(folders, coco_photos(listing), listing)

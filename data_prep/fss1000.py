"""FSS-1000 (Li et al. 2020): 1,000 classes of objects, ten photos of each, with the split into 520, 240 and 240 that HSNet uses.

    ROOT/<class>/<1..10>.jpg   (or ROOT/FSS-1000/..., or ROOT/fewshot_data/fewshot_data/...)
    ROOT/<class>/<1..10>.png   masks: from 128 on (as grey value) an object of the class
    LISTS/{trn,val,test}.txt   one class per line; `--lists`, by default ROOT or ROOT/splits

Class 0 is background, then come the classes of trn, val and test, each list in alphabetical order: class id - 1 is HSNet's number.
Those of val and test are marked novel. `--natural-names` writes "american alligator" for "american_alligator".
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.paired import PairSource, find_folder
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.data.pairs import Pair, Pairing
from ofaseg.data.rows import ShardError
from ofaseg.vocabulary import ClassVocabulary

SPLITS = ("train", "val", "test")
_LISTS = {"train": "trn", "val": "val", "test": "test"}
_THRESHOLD = 128


def read_classes(root, lists: str = "") -> dict[str, list[str]]:
    """Split -> its classes in alphabetical order.

    Raises:
        FileNotFoundError: a list is missing.
        SourceError: a class stands in two lists.
    """
    folders = [Path(lists)] if lists else [Path(root), Path(root) / "splits"]
    classes: dict[str, list[str]] = {}
    for split, name in _LISTS.items():
        path = next((folder / f"{name}.txt" for folder in folders if (folder / f"{name}.txt").is_file()), None)
        if path is None:
            places = " or ".join(str(folder / f"{name}.txt") for folder in folders)
            raise FileNotFoundError(f"{places}: list of the {split} classes not found; copy HSNet's there, or give its folder as --lists")
        classes[split] = sorted({line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()})
    listed = [name for names in classes.values() for name in names]
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{folders[0]}: class {twice!r} stands in two of the lists; copy them again")
    return classes


def vocabulary(classes: dict[str, list[str]], natural_names: bool = False) -> ClassVocabulary:
    """Background and the classes of all splits; those of val and test are novel."""
    names = [name.replace("_", " ") if natural_names else name for names in classes.values() for name in names]
    novel = [split != "train" for split, names in classes.items() for _ in names]
    thing = (False, *(True for _ in names))
    return ClassVocabulary(("background", *names), thing, (False, *novel), source=f"FSS-1000, background and {len(names)} classes")


class Fss1000Source(PairSource):
    """The photos of one split, class by class.

    Raises:
        FileNotFoundError: the folder of the classes or a list is missing.
        SourceError: a class without a folder, or a photo without a mask.
    """

    def __init__(self, root, split: str, lists: str = "", natural_names: bool = False, on_bad_sample: str = "raise"):
        classes = read_classes(root, lists)
        first = classes["train"][0] if classes["train"] else ""
        places = [f"{above}{first}" for above in ("", "FSS-1000/", "fewshot_data/fewshot_data/", "fewshot_data/")]
        folder = find_folder(root, places, f"class {first!r}").parent
        ordered = [name for names in classes.values() for name in names]
        self.numbers = {name: 1 + k for k, name in enumerate(ordered)}
        super().__init__(vocabulary(classes, natural_names), _pairing(folder, classes[split]), on_bad_sample)

    def read_label_map(self, path: Path) -> np.ndarray:
        try:
            grey = np.asarray(Image.fromarray(codec.decode_image(path.read_bytes(), str(path))).convert("L"))
        except (codec.CodecError, OSError) as error:
            raise SourceError(f"{path}: mask cannot be read ({error}); copy it again") from error
        return np.where(grey >= _THRESHOLD, self.numbers[path.parent.name], 0).astype(np.int32)


def _pairing(folder: Path, classes: list[str]) -> Pairing:
    """The photos and masks of the classes; a fault for a class without photos and for a photo without a mask."""
    pairs, faults = [], []
    for name in classes:
        photos = sorted((folder / name).glob("*.jpg"))
        if not photos:
            faults.append(ShardError.at(folder / name, "no photo of this class, but the list names it; copy the folder there"))
        for photo in photos:
            mask = photo.with_suffix(".png")
            if mask.is_file():
                pairs.append(Pair(f"{name}/{photo.stem}", photo, mask))
            else:
                faults.append(ShardError.at(mask, f"mask of {photo.name} not found; copy it there"))
    return Pairing(pairs, faults)


def add_arguments(parser) -> None:
    """Options of this dataset."""
    lists_help = "folder of trn.txt, val.txt and test.txt (default: ROOT or ROOT/splits)"
    parser.add_argument("--lists", default="", metavar="FOLDER", help=lists_help)
    parser.add_argument("--natural-names", action="store_true", help="class names with blanks in place of underscores")


def open_split(root, split: str, args: argparse.Namespace) -> Fss1000Source:
    """The photos of a split. Raises as `Fss1000Source`."""
    return Fss1000Source(root, split, args.lists, args.natural_names, getattr(args, "on_bad_sample", "raise"))

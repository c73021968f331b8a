"""What the converters of PASCAL VOC's layout share: lists of stems, and the class "background"."""

from pathlib import Path
from typing import Optional, Sequence

from data_prep.paired import find_folder
from ofaseg.data.pairs import Pair, Pairing
from ofaseg.data.rows import ShardError
from ofaseg.vocabulary import ClassVocabulary

_PHOTO_SUFFIXES = (".jpg", ".png")
NO_BACKGROUND_HELP = "leave class 0, background, out: its pixels have no label, the other classes are numbered from 0"


def year_folder(root, year: str) -> Path:
    """The folder that holds JPEGImages: `root`, `root`/VOC<year> or `root`/VOCdevkit/VOC<year>. Raises FileNotFoundError."""
    return find_folder(root, [f"{above}JPEGImages" for above in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", "")], "photos").parent


def read_stems(candidates: Sequence[Path]) -> list[str]:
    """The stems that the first of the list files `candidates` holds, in its order; a line is a stem or begins with a path.

    Raises:
        FileNotFoundError: none of the files is there, or it is empty.
    """
    path = first_file(candidates)
    if path is None:
        raise FileNotFoundError(f"{' or '.join(map(str, candidates))}: list of the split not found; copy it there, one stem per line")
    stems = [Path(line.split()[0]).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise FileNotFoundError(f"{path}: the list of the split is empty; copy it again from the release")
    return stems


def first_file(candidates: Sequence[Path]) -> Optional[Path]:
    """The first of `candidates` that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def listed_pairs(stems: Sequence[str], images: Path, label_maps: Path) -> Pairing:
    """The photo and the label map of each stem in the order of the list; a fault for each stem without one of them, or named twice."""
    pairs, faults, seen = [], [], set()
    for stem in stems:
        photo, label_map = first_file([images / f"{stem}{suffix}" for suffix in _PHOTO_SUFFIXES]), label_maps / f"{stem}.png"
        if stem in seen:
            faults.append(ShardError.at(images / stem, "stands twice in the list of the split; remove one of the lines"))
        elif photo is None:
            faults.append(ShardError.at(images / f"{stem}.jpg", "photo not found, but the split lists it; copy it there"))
        elif not label_map.is_file():
            faults.append(ShardError.at(label_map, "label map not found, but the split lists it; copy it there"))
        else:
            pairs.append(Pair(stem, photo, label_map))
        seen.add(stem)
    return Pairing(pairs, faults)


def voc_colours(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The devkit's RGB colours of class 0..num_classes-1: bits 0, 1, 2 of each octal digit of the class, from the highest bit down."""
    colours = []
    for k in range(num_classes):
        digits = [k >> 3 * position & 7 for position in range(3)]
        colours.append(tuple(sum((digit >> channel & 1) << 7 - position for position, digit in enumerate(digits)) for channel in range(3)))
    return tuple(colours)


def without_first_class(vocabulary: ClassVocabulary) -> ClassVocabulary:
    """The same classes without class 0."""
    return ClassVocabulary(
        names=vocabulary.names[1:], thing=vocabulary.thing[1:], palette=vocabulary.palette[1:], source=f"{vocabulary.source}, no background"
    )

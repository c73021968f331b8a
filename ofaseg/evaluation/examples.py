"""Which photos of an evaluation are kept as examples: the best, the worst and random ones by their own mIoU.

`examples/examples.json` of an evaluation lists them; each has a folder `examples/<name>/` with photo.jpg, labels.png and
prediction.png.
"""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Optional

from ofaseg.evaluation.report import write_json

GROUPS = ("best", "worst", "random")
INDEX = "examples.json"


@dataclass
class ChosenPhoto:
    """One photo that is kept.

    Attributes:
        row: its number in the split.
        miou: mIoU 0..1 of this photo alone; None when unknown.
        groups: those of GROUPS it was chosen for.
        name: its folder below examples/.
    """

    row: int
    miou: Optional[float] = None
    groups: list[str] = field(default_factory=list)
    name: str = ""


def choose(scores: dict[int, float], count: int, seed: int = 1) -> list[ChosenPhoto]:
    """At most `count` photos of each group, best first, then worst, then random; a photo of several groups comes once.

    Args:
        scores: row -> mIoU of the photo; nan (no labels) is passed over.
        count: photos per group.
        seed: of the random group, which depends on the rows alone: every model shows the same random photos.
    """
    rows = sorted(row for row, score in scores.items() if not math.isnan(score))
    ranked = sorted(rows, key=lambda row: (-scores[row], row))
    groups = {"best": ranked[:count], "worst": ranked[::-1][:count], "random": random.Random(seed).sample(rows, min(count, len(rows)))}
    chosen: dict[int, ChosenPhoto] = {}
    for group, members in groups.items():
        for row in members:
            chosen.setdefault(row, ChosenPhoto(row, scores[row])).groups.append(group)
    return list(chosen.values())


def choose_random(rows: Iterable[int], count: int, seed: int = 1) -> list[ChosenPhoto]:
    """The random group of `choose` alone, for photos that were not scored one by one."""
    rows = sorted(rows)
    return [ChosenPhoto(row, None, ["random"]) for row in random.Random(seed).sample(rows, min(count, len(rows)))]


def write_index(folder, photos: list[ChosenPhoto]) -> None:
    """Writes examples.json in `folder`, the examples folder of an evaluation."""
    entries = [{"name": photo.name, "row": photo.row, "mIoU": photo.miou, "groups": photo.groups} for photo in photos]
    write_json(Path(folder) / INDEX, {"examples": entries})


def read_index(folder) -> list[ChosenPhoto]:
    """The photos listed in an examples folder; without examples.json every sub-folder that holds a photo, ungrouped.

    Raises:
        ValueError: examples.json is malformed.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        return [ChosenPhoto(-1, name=photo.parent.name) for photo in sorted(Path(folder).glob("*/photo.jpg"))]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["examples"]
        photos = [ChosenPhoto(entry["row"], entry["mIoU"], list(entry["groups"]), str(entry["name"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of examples ({error!r}); write it with `ofaseg evaluate ... --out`") from error
    if any(Path(photo.name).name != photo.name for photo in photos):
        raise ValueError(f"{path}: a name leads out of the folder; write it with `ofaseg evaluate ... --out`")
    return photos

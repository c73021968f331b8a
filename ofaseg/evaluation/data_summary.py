"""What a report says of the data: the splits of a folder of shards, from vocabulary.json and summary_<split>.json beside them."""

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Optional, Sequence

from ofaseg.evaluation.html_page import swatch
from ofaseg.evaluation.report import percent
from ofaseg.vocabulary import ClassVocabulary


@dataclass
class SplitSummary:
    """One split.

    Attributes:
        name: of the split.
        rows: number of photos, None when unknown.
        sizes: height x width of the photos in words, or "".
        skipped: samples that the converter left out.
        pixels: labelled pixels of class 0..K-1; empty when unknown.
    """

    name: str
    rows: Optional[int] = None
    sizes: str = ""
    skipped: int = 0
    pixels: list[int] = field(default_factory=list)


@dataclass
class DataSummary:
    """A folder of shards: its path, where its classes come from, their names, its splits."""

    folder: str
    source: str
    class_names: list[str]
    splits: list[SplitSummary]


def read_data_summary(folder) -> Optional[DataSummary]:
    """What lies beside the shards in `folder`; None when there is no vocabulary.json (another machine, official TSV files).

    Raises:
        ValueError: vocabulary.json or a summary is malformed.
    """
    folder = Path(folder)
    about = _read_object(folder / "vocabulary.json")
    if about is None:
        return None
    names = about.get("names") or []
    rows = about.get("num_rows") or {}
    splits = [_split(folder / f"summary_{name}.json", name, count, len(names)) for name, count in rows.items()]
    return DataSummary(str(folder), str(about.get("source", "")), list(names), splits)


def _read_object(path: Path) -> Optional[dict]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); write the shards again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: needs a JSON object; write the shards again")
    return data


def _split(path: Path, name: str, rows: int, num_classes: int) -> SplitSummary:
    found = _read_object(path) or {}
    pixels = found.get("pixels_per_class") or []
    pixels = list(pixels.values()) if isinstance(pixels, dict) else list(pixels)
    skipped = found.get("skipped") or []
    count = skipped if isinstance(skipped, int) else len(skipped)
    return SplitSummary(name, rows, _sizes(found.get("sizes")), count, pixels[:num_classes] if len(pixels) >= num_classes else [])


def _sizes(sizes) -> str:
    """Height x width, smallest to largest."""
    if not isinstance(sizes, dict) or not {"min", "max"} <= set(sizes):
        return ""
    texts = ["x".join(map(str, sizes[key])) if isinstance(sizes[key], list) else str(sizes[key]) for key in ("min", "max")]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def data_section(folders: Sequence[DataSummary], vocabulary: ClassVocabulary) -> str:
    """HTML of the folders; "" without any."""
    if not folders:
        return ""
    return "<h2>Data</h2>" + "".join(_folder(folder, vocabulary) for folder in folders)


def _folder(data: DataSummary, vocabulary: ClassVocabulary) -> str:
    columns = ["split", "photos"]
    columns += ["height x width"] if any(split.sizes for split in data.splits) else []
    columns += ["left out"] if any(split.skipped for split in data.splits) else []
    rows = ""
    for split in data.splits:
        cells = {"split": split.name, "photos": "–" if split.rows is None else f"{split.rows:,}"}
        cells |= {"height x width": split.sizes or "–", "left out": f"{split.skipped:,}"}
        rows += "<tr>" + "".join(f"<td>{escape(cells[column])}</td>" for column in columns) + "</tr>"
    head = "".join(f"<th scope=col>{column}</th>" for column in columns)
    about = f"{data.folder}: {len(data.class_names)} classes" + (f", {data.source}" if data.source else "")
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'<div class="card"><p class="muted">{escape(about)}</p>{table}{_class_shares(data, vocabulary)}</div>'


def _class_shares(data: DataSummary, vocabulary: ClassVocabulary) -> str:
    """Each class's share of the labelled pixels by split, folded away; "" when no split knows them."""
    splits = [split for split in data.splits if split.pixels]
    if not splits or not data.class_names:
        return ""
    coloured = list(vocabulary.names) == data.class_names
    head = "<th scope=col>class</th>" + "".join(f"<th scope=col>{escape(split.name)}, %</th>" for split in splits)
    rows = ""
    for k, name in enumerate(data.class_names):
        cells = "".join(f"<td>{percent(split.pixels[k] / max(1, sum(split.pixels)))}</td>" for split in splits)
        mark = swatch(vocabulary, k) + " " if coloured else ""
        rows += f'<tr><td class="chips-cell">{mark}{escape(name)}</td>{cells}</tr>'
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>Share of the labelled pixels by class</summary>{table}</details>"

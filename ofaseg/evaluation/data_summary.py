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
        shares: of class 0..K-1 in the labelled pixels, 0..1; empty when unknown.
        images: photos that show class 0..K-1; as long as `shares`.
    """

    name: str
    rows: Optional[int] = None
    sizes: str = ""
    skipped: int = 0
    shares: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


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
    splits = [_split(folder / f"summary_{name}.json", name, count) for name, count in rows.items()]
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


def _split(path: Path, name: str, rows: int) -> SplitSummary:
    found = _read_object(path)
    if found is None:
        return SplitSummary(name, rows)
    try:
        shares, images = [c["share"] for c in found["classes"]], [c["images"] for c in found["classes"]]
        return SplitSummary(name, rows, _sizes(found["sizes"]), len(found["skipped"]), shares, images)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the summary of a split ({error!r}); write the shards again") from error


def _sizes(sizes: dict) -> str:
    """Height x width where all photos have one size, else the ranges of both."""
    texts = []
    for axis in ("height", "width"):
        low, high = sizes[axis]["min"], sizes[axis]["max"]
        texts.append(str(low) if low == high else f"{low}..{high}")
    return " x ".join(texts)


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
    splits = [split for split in data.splits if len(split.shares) == len(data.class_names)]
    if not splits or not data.class_names:
        return ""
    coloured = list(vocabulary.names) == data.class_names
    head = "".join(f"<th scope=col>{escape(split.name)}, %</th><th scope=col>{escape(split.name)}, photos</th>" for split in splits)
    rows = ""
    for k, name in enumerate(data.class_names):
        cells = "".join(f"<td>{percent(split.shares[k])}</td><td>{split.images[k]:,}</td>" for split in splits)
        mark = swatch(vocabulary, k) + " " if coloured else ""
        rows += f'<tr><td class="chips-cell">{mark}{escape(name)}</td>{cells}</tr>'
    table = f'<div class="scroll"><table><thead><tr><th scope=col>class</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>Share of the labelled pixels and number of photos by class</summary>{table}</details>"

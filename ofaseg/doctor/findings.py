"""What the doctor found: severity, stable code, place, cause and cure."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ofaseg.data.rows import ShardError, place

SEVERITIES = ("error", "warning", "note")
"""error: training or reading fails or learns wrong labels; warning: probably not meant; note: worth knowing."""


class Code(NamedTuple):
    severity: str
    meaning: str


CODES = {
    # paths and files
    "missing_path": Code("error", "there is no such file or folder"),
    "unknown_path": Code("error", "a file or folder of no kind that can be checked"),
    "unreadable": Code("error", "the operating system refuses to open or read a file"),
    "bad_file": Code("error", "a shard cannot be opened: empty, cut off, or of another format than its name says"),
    "bad_column": Code("error", "a shard lacks a column, or one has another type"),
    "incomplete_split": Code("error", "shards are missing, doubled, or were being written when the process ended"),
    "row_count": Code("error", "a shard or split has another number of rows than were written"),
    "content_changed": Code("error", "rows differ from those that were written (another hash)"),
    "stale_index": Code("warning", "the offsets index of a TSV does not belong to it and is built again"),
    "line_ends": Code("note", "a TSV has Windows line ends"),
    # rows
    "bad_row": Code("error", "a line that is no row: empty, or with another number of columns"),
    "bad_field": Code("error", "a field that cannot be read: bad base64, broken JSON, no UTF-8, damaged page"),
    "bad_id": Code("error", "an empty id, or one with control characters"),
    "duplicate_id": Code("error", "an id stands twice in a split"),
    "leak": Code("warning", "the same photo stands in two splits"),
    "repeated_image": Code("note", "the same photo stands twice in a split"),
    # images and maps
    "bad_image": Code("error", "an image that cannot be decoded, has several frames, or an impossible size"),
    "converted_image": Code("note", "an image that is changed when it is read: CMYK, 16 bit, palette, transparency, rotation"),
    "no_label_map": Code("error", "a row without a label map among rows that have one"),
    "bad_label_map": Code("error", "a label map that cannot be decoded or is not one channel of class ids"),
    "size_mismatch": Code("error", "image and map differ in height or width"),
    "swapped_columns": Code("error", "the photo stands where the label map belongs and the other way round"),
    "label_range": Code("error", "a label value that is neither a class nor the ignore value"),
    "no_label": Code("warning", "a label map without any labelled pixel"),
    # label values of a whole split
    "labels_empty": Code("error", "no map of the split has a labelled pixel"),
    "one_class": Code("warning", "every labelled pixel of the split is of one class"),
    "reduce_zero_label": Code("error", "labels are shifted by one: 0 means background or no label, classes start at 1"),
    "maybe_shifted": Code("warning", "0 is in nearly every map as if it meant background, while the class list starts with a real class"),
    "ignore_value": Code("error", "a value such as 255 is used for pixels without a label, but the vocabulary names another one"),
    "class_count": Code("error", "the maps use more classes than there are names"),
    "stretched_labels": Code("error", "label values were multiplied to be visible, as 0 and 255 for a mask"),
    "unused_class": Code("note", "classes that never occur in a split"),
    # lists
    "bad_box": Code("error", "a box that is empty, reversed or not four finite numbers"),
    "box_outside": Code("warning", "a box that reaches outside the image"),
    "class_id_range": Code("error", "a class id of a box or segment that is no class"),
    "segments_mismatch": Code("error", "segments and segment map do not belong together"),
    "bad_mask": Code("error", "an object whose mask cannot be read or has another size than the image"),
    "empty_text": Code("warning", "a caption without words"),
    # raw folders
    "bad_pair": Code("error", "a photo without label map, a map without photo, or two files of one name"),
    "left_out": Code("warning", "photos or folders beside the split folders, which conversion leaves out"),
    "bad_polygons": Code("error", "a labelme file that cannot be read, names an unknown class, or has a shape without area"),
    # class lists
    "no_vocabulary": Code("warning", "shards with label maps but without class names beside them"),
    "bad_vocabulary": Code("error", "class names that cannot be used: missing, doubled, or with wrong entries"),
    "similar_names": Code("warning", "two class names that differ in case, blanks or signs only"),
    "numbered_names": Code("warning", "class names that carry their number, which models would read as words"),
    "doubtful_names": Code("warning", "blank lines within a class list, names that start with #, or with control characters"),
    "names_changed": Code("warning", "class names in other words than when the shards were written"),
    # checkpoints and runs
    "bad_checkpoint": Code("error", "a checkpoint that is damaged, unsafe, or of another model"),
    "nan_weights": Code("error", "weights that are not finite"),
    "class_rows": Code("error", "a checkpoint whose class rows and class names differ in number"),
    "bad_config": Code("error", "a run configuration that cannot be parsed"),
    "unknown_name": Code("error", "a task, architecture, criterion or option that is not registered"),
    "missing_input": Code("error", "a file or folder that the configuration names is not there"),
    "classes_differ": Code("error", "class names of a configuration and its data, or of vocabulary.json and a summary, disagree"),
    "nan_loss": Code("error", "a training log whose loss or gradient is not finite"),
    "zero_score": Code("warning", "a run whose validation score stays at zero"),
    "skipped_rows": Code("warning", "a run that left out rows"),
}
"""Every code with its severity and meaning; docs/doctor.md lists them."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        severity: one of `SEVERITIES`.
        code: a key of `CODES`, stable over versions.
        file: path of the file or folder.
        row: row in the file from 0 (line in logs and lists, from 0), or None.
        column: name of the column, or "".
        message: what is wrong.
        cure: what to do.
    """

    severity: str
    code: str
    file: str
    row: Optional[int]
    column: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.severity} [{self.code}] {place(self.file, self.row, self.column)}: {self.message}; {self.cure}"


def finding(code: str, file, message: str, cure: str, row: Optional[int] = None, column: str = "") -> Finding:
    """A Finding with the severity of its code."""
    return Finding(CODES[code].severity, code, str(file), row, column, message, cure)


def from_error(code: str, error: Exception, file="", row: Optional[int] = None, column: str = "") -> Finding:
    """The Finding of an error whose message is "<place>: <cause>; <cure>"; a ShardError's own place comes first."""
    if isinstance(error, ShardError):
        file, column = error.file or file, error.column or column
        row = error.row if error.row is not None else row
    text = str(error)
    for where in (place(file, row, column), place(file, row), str(file)):
        text = text.removeprefix(f"{where}: ") if where else text
    cause, separator, cure = text.rpartition("; ")
    return finding(code, file, *((cause, cure) if separator else (text, "correct or replace it")), row, column)


@dataclass
class Findings:
    """Findings in order of their discovery, at most `limit` of each code; all are counted.

    Attributes:
        found: the findings that are kept.
        counts: number of findings by code, kept or not.
        samples: how many samples were looked at.
    """

    limit: int = 1000
    found: list[Finding] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    samples: int = 0

    def add(self, *new: Finding) -> None:
        for item in new:
            self.counts[item.code] += 1
            if self.counts[item.code] <= self.limit:
                self.found.append(item)

    def by_severity(self) -> dict[str, int]:
        """severity -> number of findings, kept or not."""
        totals = dict.fromkeys(SEVERITIES, 0)
        for code, number in self.counts.items():
            totals[CODES[code].severity] += number
        return totals

    def to_json(self, paths) -> dict:
        """A JSON-ready dict: format, version, paths, samples, counts by severity, findings, and how many were not kept."""
        kept = [dataclasses.asdict(item) for item in self.found]
        return {
            "format": "ofaseg-doctor",
            "version": 1,
            "paths": [str(path) for path in paths],
            "samples": self.samples,
            "counts": self.by_severity(),
            "findings": kept,
            "left_out": sum(self.counts.values()) - len(kept),
        }

    def grouped(self) -> list[tuple[Finding, int]]:
        """(first of a kind, how many more of it), most severe first; findings of one kind share code, column and cure."""
        groups: dict[tuple, list] = {}
        for item in self.found:
            groups.setdefault((item.code, item.column, item.cure), [item, -1])[1] += 1
        order = sorted(groups.values(), key=lambda group: SEVERITIES.index(group[0].severity))
        return [(first, more) for first, more in order]

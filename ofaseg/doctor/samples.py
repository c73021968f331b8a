"""Checks of one sample, wherever it lies: image, label map, boxes, captions, segments."""

import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Callable, Optional

import numpy as np
from PIL import Image

from ofaseg.data import codec
from ofaseg.doctor.findings import Finding, finding, from_error
from ofaseg.doctor.labels import Conventions, LabelTally, class_values, no_label_values
from ofaseg.utils.run_lengths import RunLengthError, runs_of_text
from ofaseg.vocabulary import ClassVocabulary

_ORIENTATION_TAG = 0x0112
_PAIR_CURE = "pair the files again, or resize the map with nearest neighbour (check whether EXIF rotation was applied to one of them)"


@dataclass
class SampleCheck:
    """Checks of samples one after the other; findings and label values add up here.

    Attributes:
        vocabulary: the classes of the label maps, None when unknown.
        conventions: of a raw folder, None for shards.
        findings: what was found so far.
        tally: label values so far.
        without_map: places (file, row) of samples that have no label map.
    """

    vocabulary: Optional[ClassVocabulary]
    conventions: Optional[Conventions] = None
    findings: list[Finding] = field(default_factory=list)
    tally: LabelTally = field(default_factory=LabelTally)
    without_map: list[tuple[str, Optional[int]]] = field(default_factory=list)

    def check(self, sample: dict, files: Callable[[str], str], row: Optional[int] = None) -> None:
        """Checks one sample.

        Args:
            sample: columns of `ofaseg.data.rows` that could be read.
            files: column -> path of the file it comes from.
            row: row in that file, None for files of their own.
        """
        if self._swapped(sample, files, row):
            return
        size = self._image(sample, files("image"), row)
        if "label_map" in sample:
            self._label_map(sample["label_map"], files("label_map"), row, size)
        self._lists(sample, files, row, size)

    def _add(self, code: str, files, row, column: str, message: str, cure: str) -> None:
        self.findings.append(finding(code, files(column), message, cure, row, column))

    def _swapped(self, sample: dict, files, row) -> bool:
        """A JPEG photo as label map beside a one-channel PNG as image."""
        if not sample.get("image") or not sample.get("label_map"):
            return False
        image, label_map = _header(sample["image"]), _header(sample["label_map"])
        swapped = image is not None and label_map is not None and image.format == "PNG" and image.mode in ("L", "P", "1")
        swapped = swapped and label_map.mode == "RGB" and (label_map.format == "JPEG" or _is_photo(label_map))
        if swapped:
            message = f"the label map is a {label_map.format} photo, the image a one-channel PNG"
            self._add("swapped_columns", files, row, "label_map", message, "exchange the two columns")
        return swapped

    def _image(self, sample: dict, file: str, row: Optional[int]) -> Optional[tuple[int, int]]:
        """(height, width) of the image, None when it cannot be decoded."""
        if sample.get("image") is None:
            return None
        try:
            size = codec.decode_image(sample["image"]).shape[:2]
        except codec.CodecError as error:
            self.findings.append(from_error("bad_image", error, file, row, "image"))
            return None
        change = _conversion(sample["image"])
        if change:
            cure = "nothing to do when that is meant; store 8-bit RGB to be sure"
            self.findings.append(finding("converted_image", file, change, cure, row, "image"))
        return size

    def _label_map(self, data: Optional[bytes], file: str, row: Optional[int], size: Optional[tuple[int, int]]) -> None:
        if not data:
            self.without_map.append((file, row))
            return
        try:
            stored = codec.decode_stored_labels(data)
        except codec.CodecError as error:
            self.findings.append(from_error("bad_label_map", error, file, row, "label_map"))
            return
        self.check_labels(stored, file, row)
        if size is not None and stored.shape != size:
            swapped = " (height and width are swapped)" if stored.shape == size[::-1] else ""
            message = f"the label map is {stored.shape[0]}x{stored.shape[1]} (height x width), the image {size[0]}x{size[1]}{swapped}"
            self.findings.append(finding("size_mismatch", file, message, _PAIR_CURE, row, "label_map"))

    def check_labels(self, stored: np.ndarray, file: str, row: Optional[int]) -> None:
        """Counts the values of a stored map (H, W) uint8 or uint16 and compares them with the vocabulary."""
        present = set(self.tally.add(stored, (file, row)).tolist())
        if self.vocabulary is None:
            return
        classes, ignored = class_values(self.vocabulary), no_label_values(self.vocabulary, self.conventions)
        if not present <= set(classes) | ignored:
            self._label_range(stored, ignored, file, row)
        if present <= ignored:
            cure = "leave the row out if that is not meant: it teaches nothing"
            self.findings.append(finding("no_label", file, "the label map has no labelled pixel", cure, row, "label_map"))

    def _label_range(self, stored: np.ndarray, ignored: set[int], file: str, row: Optional[int]) -> None:
        """Says where the values lie that are neither a class nor ignored."""
        if self.conventions is not None:
            stored = np.where(np.isin(stored, list(ignored)), self.vocabulary.ignore_label, stored).astype(np.uint16)
        try:
            codec.label_ids(stored, self.vocabulary)
        except codec.CodecError as error:
            item = from_error("label_range", error, file, row, "label_map")
            if self.conventions is not None:
                item = replace(item, cure="check the number of class names, --label-offset and --ignore, or map the labels again")
            self.findings.append(item)

    # ---- lists ----

    def _lists(self, sample: dict, files, row, size) -> None:
        for k, text in enumerate(sample.get("captions") or ()):
            if not str(text or "").strip():
                self._add("empty_text", files, row, "captions", f"caption {k} has no words", "write one, or leave it out")
        for column in ("boxes", "segments", "instances"):
            for k, entry in enumerate(sample.get(column) or ()):
                self._entry(column, k, entry, files, row, size)
        self._segments(sample, files, row, size)
        for k, entry in enumerate(sample.get("instances") or ()):
            self._mask(k, entry, files, row, size)

    def _mask(self, k: int, entry: dict, files, row, size) -> None:
        """The run lengths of one object."""
        try:
            pixels = int(runs_of_text(entry["mask"] or "").sum())
        except RunLengthError as error:
            self._add("bad_mask", files, row, "instances", f"mask {k}: {str(error).partition(';')[0]}", "write the row again")
            return
        if size is not None and pixels != size[0] * size[1]:
            message = f"mask {k} has {pixels} pixels, the image {size[0]}x{size[1]}"
            self._add("bad_mask", files, row, "instances", message, "draw it at the size of the image")

    def _entry(self, column: str, k: int, entry, files, row, size) -> None:
        """One box or segment."""
        name = f"{column.removesuffix('s') if column != 'boxes' else 'box'} {k}"
        if not isinstance(entry, dict) or entry.get("box") is None:
            self._add("bad_box", files, row, column, f"{name} has no box", "correct it or leave it out")
            return
        class_id = entry.get("class_id")
        if class_id is not None and self.vocabulary is not None and not 0 <= class_id < len(self.vocabulary):
            message = f"{name} has class_id {class_id}, classes are 0..{len(self.vocabulary) - 1}"
            self._add("class_id_range", files, row, column, message, "map the class ids again; they count from 0, without label_offset")
        box = np.asarray(entry["box"], dtype=np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
            message = f"{name} is {entry['box']}, not x0 < x1, y0 < y1 in finite numbers"
            self._add("bad_box", files, row, column, message, "write [x0, y0, x1, y1] in pixels (not x, y, width, height), or leave it out")
        elif size is not None and ((box[:2] < 0).any() or box[2] > size[1] or box[3] > size[0]):
            message = f"{name} is {entry['box']}, the image {size[1]} wide and {size[0]} high"
            self._add("box_outside", files, row, column, message, "clip it, or check whether the image was resized without its boxes")

    def _segments(self, sample: dict, files, row, size) -> None:
        if "segment_map" not in sample or "segments" not in sample:  # no such column, or reported as unreadable
            return
        data, segments = sample["segment_map"], sample["segments"] or []
        if not data and not segments:
            return
        cure = "write the segment map and the list from the same source"
        if not data:
            message = f"{len(segments)} segments, but no segment map"
            self._add("segments_mismatch", files, row, "segment_map", message, cure)
            return
        try:
            segment_map = codec.decode_segment_map(data)
        except codec.CodecError as error:
            self.findings.append(from_error("bad_label_map", error, files("segment_map"), row, "segment_map"))
            return
        if size is not None and segment_map.shape != size:
            message = f"the segment map is {segment_map.shape[0]}x{segment_map.shape[1]} (height x width), the image {size[0]}x{size[1]}"
            self._add("size_mismatch", files, row, "segment_map", message, "write it at the size of the image")
        drawn = set(np.unique(segment_map).tolist()) - {0}
        ids = [entry.get("id") for entry in segments if isinstance(entry, dict)]
        listed = set(ids)
        if drawn != listed or len(ids) != len(listed):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            only = f"drawn only: {sorted(drawn - listed)[:5]}, listed only: {sorted(listed - drawn)[:5]}, listed twice: {twice[:5]}"
            self._add("segments_mismatch", files, row, "segments", f"segment ids of map and list differ ({only})", cure)


def _header(data: bytes) -> Optional[Image.Image]:
    """The image with its header read, None when it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):  # decoding it reports what is wrong
        return None


def _is_photo(image: Image.Image) -> bool:
    """Whether an RGB image has more colours than a colour-mapped label map."""
    try:
        return image.getcolors(256) is None
    except (OSError, SyntaxError, ValueError):  # damaged: decoding it reports that
        return False


def _conversion(data: bytes) -> str:
    """How `codec.decode_image` changes an image that it can decode; "" when pixels stay as stored."""
    image = _header(data)
    if image is None:
        return ""
    changes = [] if image.mode in ("RGB", "L") else [f"mode {image.mode} is converted to RGB"]
    if image.has_transparency_data:
        changes.append("transparent pixels are laid over white")
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, EOFError):  # damaged EXIF is read as none
        orientation = 1
    if orientation in range(2, 9):
        changes.append(f"EXIF orientation {orientation} is applied (the label map must lie the same way)")
    return ", ".join(changes)

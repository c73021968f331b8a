"""Checks of raw folders: `images/`, `labels/` (PNG maps or labelme polygons) and `classes.txt`, paired by stem."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from ofaseg.data import codec
from ofaseg.data.foreign import foreign_kind
from ofaseg.data.labelme import read_labelme
from ofaseg.data.pairs import Pair, likely_endings, pair_by_stem
from ofaseg.data.split_folders import find_split_folders
from ofaseg.doctor.findings import Finding, Findings, finding, from_error
from ofaseg.doctor.labels import Conventions, LabelTally, maybe_shifted
from ofaseg.doctor.samples import SampleCheck
from ofaseg.doctor.scan import CHUNK, Piece, Seen, run
from ofaseg.doctor.splits import check_labels, check_photos, gather
from ofaseg.doctor.vocabulary import check_lines, check_names
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary, VocabularyError, parse_class_names


class Pairs(NamedTuple):
    """A piece of work: some pairs, the classes of their maps, and how these are meant."""

    pairs: list[Pair]
    vocabulary: Optional[ClassVocabulary]
    conventions: Conventions


def check_raw_folder(root: str, findings: Findings, workers: int = 1, quiet: bool = False, conventions: Conventions | None = None) -> None:
    """Checks the class list, the splits, the pairing and every pair of a raw folder, as `data_prep/prepare.py folder` takes them."""
    conventions = conventions or Conventions()
    vocabulary = _vocabulary(Path(root), findings, conventions)
    splits = _pairs_by_split(Path(root), findings, conventions)
    photos: dict[bytes, tuple[str, Seen]] = {}
    together = LabelTally()
    for split, pairs in splits.items():
        tasks = [Pairs(pairs[start : start + CHUNK], vocabulary, conventions) for start in range(0, len(pairs), CHUNK)]
        with tqdm(total=len(pairs), desc=f"{Path(root).name} {split}".strip(), unit="pair", disable=quiet or None) as bar:
            whole = gather(run(scan_pairs, tasks, workers, bar), findings)
        check_labels(whole, vocabulary, str(Path(root) / "labels" / split), findings, together, conventions)
        check_photos(split, whole.seen, photos, findings)
    if vocabulary is not None:
        findings.add(*maybe_shifted(together, vocabulary, str(Path(root) / "labels"), conventions))


def _pairs_by_split(root: Path, findings: Findings, conventions: Conventions) -> dict[str, list[Pair]]:
    """Split -> its pairs; without split folders they are all of split ""."""
    images, labels = root / "images", root / "labels"
    names, left_out = find_split_folders(images, labels)
    findings.add(*(from_error("left_out", fault) for fault in left_out if names))
    splits = {}
    for name in names or [""]:
        splits[name], faults = pair_by_stem(images / name, labels / name, conventions.image_ending, conventions.label_ending)
        findings.add(*(from_error("bad_pair", fault) for fault in faults))
    if not any(splits.values()):
        message = "no photo of images/ has a label map of the same name in labels/"
        endings = likely_endings(images, labels)
        cure = f"give {endings} to the doctor and to the converter" if endings else "give both the same stem: images/a.jpg and labels/a.png"
        findings.add(finding("bad_pair", root, message, cure))
    return splits


def _vocabulary(root: Path, findings: Findings, conventions: Conventions) -> Optional[ClassVocabulary]:
    path = root / "classes.txt"
    if not path.exists():
        message = "no classes.txt, so label values cannot be compared with class names"
        findings.add(finding("no_vocabulary", root, message, "write one with a class name per line, in the order of their label values"))
        return None
    try:
        names = parse_class_names(str(path.resolve()))
        ignore = conventions.ignore[0] if conventions.ignore else None
        vocabulary = ClassVocabulary(names, label_offset=conventions.label_offset, ignore_label=ignore, source=str(path))
    except VocabularyError as error:
        findings.add(from_error("bad_vocabulary", error, path.resolve()))
        return None
    findings.add(*check_lines(str(path)), *check_names(names, str(path)))
    return vocabulary


def scan_pairs(task: Pairs) -> Piece:
    """Reads, decodes and checks the pairs of one task."""
    check, piece = SampleCheck(task.vocabulary, task.conventions), Piece(samples=len(task.pairs))
    for pair in task.pairs:
        sample = {}
        for column, path in (("image", pair.image), ("label_map", pair.label_map)):
            data = _read(path, column, check.findings)
            if data is not None:
                sample[column] = data
        if pair.label_map.suffix.lower() == ".json" and sample.pop("label_map", None) is not None:
            _check_polygons(pair.label_map, sample.get("image"), check)
        files = {"image": str(pair.image), "label_map": str(pair.label_map)}
        check.check(sample, files.__getitem__)
        image = hashlib.blake2b(sample["image"], digest_size=16).digest() if "image" in sample else None
        piece.seen.append(Seen(str(pair.image), None, pair.stem, image, None))
    piece.findings, piece.tally, piece.without_map = check.findings, check.tally, check.without_map
    return piece


def _read(path: Path, column: str, findings: list[Finding]) -> Optional[bytes]:
    """The bytes of a file; None, and a finding, when it cannot be read or holds something else."""
    code = "bad_image" if column == "image" else "bad_label_map"
    try:
        kind, cure = foreign_kind(path)
        if kind:
            findings.append(finding(code, path, kind, cure, column=column))
            return None
        data = path.read_bytes()
    except OSError as error:
        cure = f"it points to {os.readlink(path)}: restore that file" if path.is_symlink() else "check its permissions and the disk"
        findings.append(finding("unreadable", path, f"cannot be read ({error.strerror or error})", cure, column=column))
        return None
    if not data:
        findings.append(finding(code, path, "the file is empty", "copy it again", column=column))
        return None
    return data


def _check_polygons(path: Path, image: Optional[bytes], check: SampleCheck) -> None:
    """Checks a labelme file as the converter reads it: its shapes and labels, the values of its map, and the size it was drawn on."""
    vocabulary = check.vocabulary
    try:
        label_map = read_labelme(path, vocabulary.names if vocabulary is not None else None)
    except codec.CodecError as error:
        cause, _, cure = str(error).removeprefix(str(path)).lstrip(":, ").rpartition("; ")
        check.findings.append(finding("bad_polygons", path, cause, cure, column="label_map"))
        return
    if vocabulary is not None:
        stored = np.where(label_map == IGNORE_INDEX, vocabulary.ignore_label, label_map + vocabulary.label_offset)
        check.check_labels(stored.astype(np.uint16), str(path), None)
    try:
        size = codec.image_size(image) if image else None
    except codec.CodecError:  # decoding the photo reports it
        size = None
    if size is not None and label_map.shape != size:
        message = f"drawn on a photo of {label_map.shape[0]}x{label_map.shape[1]} (height x width), this one has {size[0]}x{size[1]}"
        check.findings.append(finding("size_mismatch", path, message, "draw on the photo that is used, or restore it", column="label_map"))

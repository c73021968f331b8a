"""What only all samples of a split together show: label values, repeated ids, photos that stand in two splits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from ofaseg.doctor.findings import Findings, finding
from ofaseg.doctor.labels import Conventions, LabelTally, diagnose
from ofaseg.doctor.scan import Piece, Seen
from ofaseg.vocabulary import ClassVocabulary


def gather(pieces: Iterable[Piece], findings: Findings) -> Piece:
    """Hands on the findings of each piece and joins the rest."""
    whole = Piece()
    for piece in pieces:
        findings.add(*piece.findings)
        piece.findings = []
        whole.extend(piece)
    findings.samples += whole.samples
    return whole


def check_labels(
    whole: Piece,
    vocabulary: Optional[ClassVocabulary],
    where: str,
    findings: Findings,
    together: LabelTally,
    conventions: Optional[Conventions] = None,
) -> None:
    """Samples without a map among others, and the label values of all maps; `where` is the folder or file of the split.

    `together` collects the values of all splits, for `maybe_shifted`; `conventions` are those of a raw folder.
    """
    if not whole.tally.maps:
        return
    together.merge(whole.tally)
    for file, row in whole.without_map:
        message = "the row has no label map, others of the split have one"
        findings.add(finding("no_label_map", file, message, "leave the row out, or add its map", row, "label_map"))
    if vocabulary is not None:
        findings.add(*diagnose(whole.tally, vocabulary, where, conventions))


def check_ids(seen: list[Seen], findings: Findings) -> None:
    """Empty, unprintable and repeated ids of the samples of a split."""
    first: dict[str, Seen] = {}
    readable = [sample for sample in seen if sample.digest is not None]
    for sample in readable:
        if not sample.id or not sample.id.isprintable():
            message = f"id {sample.id!r} is empty or has control characters"
            findings.add(finding("bad_id", sample.file, message, "give every sample a name of printable characters", sample.row, "id"))
        elif sample.id in first:
            other = first[sample.id]
            message = f"id {sample.id!r} stands in {_name(other)}, too"
            findings.add(finding("duplicate_id", sample.file, message, "give every sample its own id", sample.row, "id"))
        else:
            first[sample.id] = sample


def check_photos(split: str, seen: list[Seen], photos: dict[bytes, tuple[str, Seen]], findings: Findings) -> None:
    """Compares image files with those of this split and of the splits before, which `photos` collects."""
    for sample in seen:
        if sample.image is None:
            continue
        there, other = photos.setdefault(sample.image, (split, sample))
        if other is sample:
            continue
        message = f"the image file is that of {_name(other)}"
        if there != split:
            cure = "leave it out of one split: scores on known photos are too good"
            findings.add(finding("leak", sample.file, message, cure, sample.row, "image"))
        else:
            findings.add(finding("repeated_image", sample.file, message, "leave one of them out", sample.row, "image"))


def _name(sample: Seen) -> str:
    return Path(sample.file).name + (f", row {sample.row}" if sample.row is not None else "")

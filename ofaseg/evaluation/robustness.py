"""Scores of one checkpoint under several namings of the classes, and whether the order of the names changes anything."""

import zlib
from dataclasses import dataclass, replace
from typing import Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from ofaseg.evaluation import report
from ofaseg.evaluation.evaluator import SemanticEvaluator, sum_over_ranks
from ofaseg.evaluation.namings import Naming
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.evaluation.semantic import bin_counts, matrix_from_bins
from ofaseg.structures import SegmentationOutput
from ofaseg.vocabulary import ClassVocabulary

TIE_SHARE = 1e-3
"""Pixels that may change with the order of the names: those whose two best scores are equal up to rounding."""
COLUMNS = ("mIoU", "thing_mIoU", "stuff_mIoU", "mAcc")


class NamingEvaluator(SemanticEvaluator):
    """Scores predictions of names by the classes that they stand for.

    A predicted distractor on a pixel of class c is a miss of c: it is in none of the K columns of the confusion matrix but in one
    more at its right. So it lowers accuracy and IoU of c and is no false alarm of any class; it adds no class to the mean.

    Args:
        vocabulary: the K classes of the label maps.
        naming: what was predicted: positions in its names.
    """

    def __init__(self, vocabulary: ClassVocabulary, naming: Naming):
        self.classes = torch.tensor(naming.classes, dtype=torch.long)
        if int(self.classes.min()) < 0 or int(self.classes.max()) > len(vocabulary):
            raise ValueError(f"the naming {naming.title!r} leads to classes outside 0..{len(vocabulary)}")
        super().__init__(vocabulary)

    def class_map(self, label_map: Tensor) -> Tensor:
        """(H, W) positions in the naming -> class ids 0..K-1, K for what is none.

        Raises:
            ValueError: a position outside the naming.
        """
        low, high = label_map.aminmax()
        if int(low) < 0 or int(high) >= len(self.classes):
            raise ValueError(f"predictions lie in {int(low)}..{int(high)}, but the model was given {len(self.classes)} names")
        return self.classes.to(label_map.device)[label_map.long()]

    def update(self, outputs: list[SegmentationOutput], batch: dict) -> None:
        label_maps = batch.get("native_label_maps")
        if label_maps is None or len(label_maps) != len(outputs):
            raise ValueError("these rows carry no label maps, so they cannot be scored; evaluate a labelled split")
        for output, label_map in zip(outputs, label_maps):
            prediction = self.class_map(output.label_map)
            counts = bin_counts(prediction, label_map.to(prediction.device, non_blocking=True), len(self.vocabulary) + 1)
            self._counts = counts if self._counts is None else self._counts + counts
            self._image_scores.append(torch.zeros(()))  # counts photos; no single photo is ranked here

    def matrix(self) -> Tensor:
        """(K, K + 1) pixels [label, prediction], the last column for predictions of no class; summed over ranks, on the CPU."""
        known = len(self.vocabulary)
        counts = self._counts if self._counts is not None else torch.zeros((known + 1) ** 2 + 2, dtype=torch.long)
        matrix = matrix_from_bins(sum_over_ranks(counts).cpu(), known + 1)
        if int(matrix[known].sum()):
            raise ValueError(f"{int(matrix[known].sum())} pixels have a label outside 0..{known - 1}; these are other shards' classes")
        return matrix[:known]

    def compute(self) -> dict:
        """As `SemanticEvaluator`, with ``no_class_share``: labelled pixels on which a distractor was predicted, 0..1."""
        scores, matrix = super().compute(), self.matrix()
        return scores | {"no_class_share": float(matrix[:, -1].sum()) / max(1, int(matrix.sum()))}


def post_for(post: PostProcess, naming: Naming) -> PostProcess:
    """The same post-processing, with the background where the naming has it."""
    if post.candidates is None or post.candidates.background_class is None:
        return post
    place = naming.classes.index(post.candidates.background_class)
    return replace(post, candidates=replace(post.candidates, background_class=place))


class OrderCheck:
    """Whether predictions under another order of the names are the same, pixel by pixel.

    Label maps of the first pass are kept compressed in memory, some kilobytes a photo; every rank compares its own photos.
    """

    def __init__(self):
        self._maps: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._pixels = self._differing = 0

    def remember(self, row: int, class_map: Tensor) -> None:
        """Keeps the class ids (H, W) of a photo."""
        values = class_map.cpu().numpy().astype(np.int32)
        self._maps[row] = (zlib.compress(values.tobytes(), 1), values.shape)

    def compare(self, row: int, class_map: Tensor) -> None:
        """Counts pixels of a remembered photo that have another class now. Raises KeyError for a photo never seen."""
        data, shape = self._maps[row]
        before = np.frombuffer(zlib.decompress(data), np.int32).reshape(shape)
        self._pixels += before.size
        self._differing += int((before != class_map.cpu().numpy()).sum())

    def compute(self, must_hold: bool) -> dict:
        """Sums over ranks: ``pixels``, ``differing``, their ``share`` 0..1, and ``passed``: the share is at most `TIE_SHARE`.

        Where the model may read the order (not `must_hold`) ``passed`` is None: the share is a finding, no fault.
        """
        pixels, differing = sum_over_ranks(torch.tensor([self._pixels, self._differing])).tolist()
        share = differing / max(1, pixels)
        passed = (pixels > 0 and share <= TIE_SHARE) if must_hold else None
        return {"pixels": pixels, "differing": differing, "share": share, "passed": passed}


@dataclass
class Row:
    """One naming of the report: its scores, or why there are none."""

    naming: Naming
    scores: Optional[dict] = None
    problem: str = ""


def markdown(rows: Sequence[Row]) -> str:
    """A table of percentages with differences to the first row, which has scores; then what did not fit, in the model's words."""
    base = rows[0].scores
    titles = dict(report.SEMANTIC_COLUMNS)
    columns = [key for key in COLUMNS if base.get(key) is not None]
    lines = ["| naming | names | renamed | " + " | ".join(titles[key] for key in columns) + " | no class |"]
    lines.append("|---|" + "---:|" * (len(columns) + 3))
    for row in rows:
        if row.scores is None:
            cells = ["does not fit", *["–"] * len(columns)]
        else:
            cells = [_cell(row.scores[key], None if row is rows[0] else base[key]) for key in columns]
            cells.append(report.percent(row.scores["no_class_share"]))
        lines.append(f"| {row.naming.title} | {len(row.naming.names)} | {row.naming.renamed} | " + " | ".join(cells) + " |")
    problems = [f"- {row.naming.title}: does not fit: {row.problem}" for row in rows if row.scores is None]
    return "\n".join([*lines, *([""] if problems else []), *problems]) + "\n"


def _cell(value: float, base: Optional[float]) -> str:
    """'41.2', or with the difference in points '41.2 (-1.1)'."""
    text = report.percent(value)
    return text if base is None or "–" in (text, report.percent(base)) else f"{text} ({100 * (value - base):+.1f})"


def order_line(check: dict) -> str:
    """What the check of the order found, in a sentence."""
    found = f"another class order changes {check['differing']} of {check['pixels']} pixels ({100 * check['share']:.4f} %)"
    if check["passed"] is None:
        return f"{found}; the model reads the names as one text, so their order may matter"
    allowed = f"{100 * TIE_SHARE:g} % are allowed for ties"
    return f"{found}: passed" if check["passed"] else f"{found}: FAILED, {allowed}; classes are mixed up, or scores depend on their place"


def to_json(rows: Sequence[Row], check: Optional[dict]) -> dict:
    """Everything in the report; scores in 0..1, ``difference`` to the first row."""
    base = rows[0].scores
    namings = []
    for row in rows:
        entry = {"naming": row.naming.title, "names": row.naming.names, "classes": row.naming.classes, "renamed": row.naming.renamed}
        if row.scores is None:
            namings.append(entry | {"does_not_fit": row.problem})
            continue
        difference = {key: row.scores[key] - base[key] for key in COLUMNS if row.scores.get(key) is not None}
        namings.append(entry | {"scores": row.scores, "difference": difference})
    return {"namings": namings, "class_order": check}

"""Filters of subclass names by the similarity of their text embeddings (digest of arXiv 2404.00701's filter script, vectorised)."""

from dataclasses import asdict, dataclass
from typing import Callable, Optional, Sequence

import numpy as np

from ofaseg.subclasses.cleaning import normal_form
from ofaseg.subclasses.label_set import LabelSet

Encode = Callable[[list[str]], "np.ndarray"]
"""Names (n) -> unit vectors (n, D), as a numpy array or a torch tensor on any device."""


@dataclass(frozen=True)
class Removal:
    """Attributes:
    class_name, name: what was looked at.
    filter: outlier, near_duplicate, other_superclass or keep.
    reason: in words, with the similarity.
    kept: it was the best name of a class that would have ended up empty, and stays.
    """

    class_name: str
    name: str
    filter: str
    reason: str
    kept: bool = False

    def __str__(self) -> str:
        return (
            f"{self.class_name}: {self.name!r} {'kept, the best of its class' if self.kept else 'removed'} [{self.filter}]: {self.reason}"
        )

    def to_json(self) -> dict:
        return asdict(self)


def embed(encode: Encode, names: Sequence[str]) -> np.ndarray:
    """Unit vectors (n, D) float64 of names, each distinct one encoded once.

    Raises:
        ValueError: the encoder hands back another shape, values that are not finite, or a zero vector.
    """
    distinct = list(dict.fromkeys(names))
    vectors = encode(distinct)
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu().double().numpy()
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(distinct):
        raise ValueError(f"the text encoder made {vectors.shape} of {len(distinct)} names; it has to make ({len(distinct)}, D)")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not lengths.all():
        bad = distinct[int(np.argmin(np.isfinite(vectors).all(axis=1) & (lengths[:, 0] > 0)))]
        raise ValueError(f"the text encoder made a vector that is zero or not finite of {bad!r}")
    position = {name: k for k, name in enumerate(distinct)}
    return (vectors / lengths)[[position[name] for name in names]]


def similarities(encoders: Sequence[tuple[Encode, float]], rows: Sequence[str], columns: Optional[Sequence[str]] = None) -> np.ndarray:
    """Weighted mean of cosines (n, m) between `rows` and `columns` (default: `rows` again) under several text encoders.

    The published script's is [(sentence encoder, 1), (CLIP, 3)].

    Raises:
        ValueError: no encoder, a weight that is not positive, or see `embed`.
    """
    if not encoders or any(weight <= 0 for _, weight in encoders):
        raise ValueError("similarities need at least one text encoder, and weights above 0")
    total = 0.0
    for encode, weight in encoders:
        vectors = embed(encode, [*rows, *(columns or ())])
        left, right = vectors[: len(rows)], vectors[len(rows) :] if columns is not None else vectors
        total = total + weight * (left @ right.T)
    return total / sum(weight for _, weight in encoders)


def outliers(similarity: np.ndarray, cutoff: float, groups: Optional[Sequence] = None) -> dict[int, int]:
    """The published rule: of each pair of names that are no more similar than `cutoff`, the one with the smaller total goes.

    Pairs are taken in order, those with a name that went before are passed over, and the later name goes where totals are equal.
    The total of a name is its similarity to all others. As pairs of different classes count too, general names are preferred.

    Args:
        similarity: (n, n), symmetric.
        cutoff: 0.46 in the published script.
        groups: for each name its class, to compare names of one class only (totals too); None for all pairs.

    Returns: position of each name that goes -> position of the name it lost against, in the order of going.
    """
    count = len(similarity)
    paired = ~np.eye(count, dtype=bool)
    if groups is not None:
        ids = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
        paired &= ids[:, None] == ids[None, :]
    totals = np.where(paired, similarity, 0.0).sum(axis=1)
    far = paired & (similarity <= cutoff)
    alive = np.ones(count, dtype=bool)
    gone: dict[int, int] = {}
    for i in range(count):
        if not alive[i]:
            continue
        # a pair with an earlier name was settled in that name's turn, so only later ones are left
        later = i + 1 + np.flatnonzero(far[i, i + 1 :] & alive[i + 1 :])
        stronger = np.flatnonzero(totals[later] > totals[i])
        lost = later[: stronger[0]] if len(stronger) else later
        alive[lost] = False
        gone.update((int(j), i) for j in lost)
        if len(stronger):
            alive[i] = False
            gone[i] = int(later[stronger[0]])
    return gone


def filter_outliers(label_set: LabelSet, encoders, cutoff: float, within_class: bool = False) -> tuple[LabelSet, list[Removal]]:
    """The label set without outliers, see `outliers`; of a class that would be empty the name that is
    most similar to all names stays."""
    names, classes = label_set.flat
    similarity = similarities(encoders, names)
    gone = outliers(similarity, cutoff, classes if within_class else None)
    reasons = {
        k: f"similarity {similarity[k, other]:.3f} to {names[other]!r} is at most {cutoff:g}, and that one is closer to the rest"
        for k, other in gone.items()
    }
    return _without(label_set, reasons, similarity.sum(axis=1), "outlier")


def filter_near_duplicates(label_set: LabelSet, encoders, cutoff: float) -> tuple[LabelSet, list[Removal]]:
    """The label set without names that are at least `cutoff` similar to an earlier name of their class that stays."""
    names, classes = label_set.flat
    similarity = similarities(encoders, names)
    reasons: dict[int, str] = {}
    kept: dict[str, list[int]] = {}
    for k, class_name in enumerate(classes):
        before = kept.setdefault(class_name, [])
        nearest = before[int(np.argmax(similarity[k, before]))] if before else None
        if nearest is not None and similarity[k, nearest] >= cutoff:
            reasons[k] = f"similarity {similarity[k, nearest]:.3f} to {names[nearest]!r} is at least {cutoff:g}"
        else:
            before.append(k)
    return _without(label_set, reasons, np.zeros(len(names)), "near_duplicate")


def filter_other_superclass(label_set: LabelSet, encoders, cutoff: float) -> tuple[LabelSet, list[Removal]]:
    """The label set without names that are at least `cutoff` similar to the name of another class than their own.

    Of a class that would be empty the name stays that is least similar to any other class.
    """
    names, classes = label_set.flat
    superclasses = list(label_set)
    similarity = similarities(encoders, names, superclasses)
    own = np.asarray(classes, dtype=object)[:, None] == np.asarray(superclasses, dtype=object)[None, :]
    similarity = np.where(own, -np.inf, similarity)
    nearest = similarity.argmax(axis=1)
    highest = similarity.max(axis=1)
    reasons = {
        int(k): f"similarity {highest[k]:.3f} to the class {superclasses[nearest[k]]!r} is at least {cutoff:g}"
        for k in np.flatnonzero(highest >= cutoff)
    }
    return _without(label_set, reasons, -highest, "other_superclass")


def keep_first(label_set: LabelSet, count: int) -> tuple[LabelSet, list[Removal]]:
    """At most `count` names of each class, the first ones. Raises ValueError for a count below 1."""
    if count < 1:
        raise ValueError(f"{count} names of a class cannot be kept; give 1 or more")
    _, classes = label_set.flat
    places = [k for names in label_set.values() for k in range(len(names))]
    reasons = {k: f"beyond the first {count}" for k, place in enumerate(places) if place >= count}
    return _without(label_set, reasons, np.zeros(len(classes)), "keep")


def _without(label_set: LabelSet, reasons: dict[int, str], quality: np.ndarray, filter: str) -> tuple[LabelSet, list[Removal]]:
    """The set without the flat positions in `reasons`; an emptied class keeps its name of highest `quality`, the first of several.

    A name that goes from one class stays in another: positions count, not words.
    """
    left: dict[str, tuple[str, ...]] = {}
    removals: list[Removal] = []
    start = 0
    for class_name, names in label_set.items():
        going = [k for k in range(start, start + len(names)) if k in reasons]
        best = max(going, key=lambda k: quality[k]) if len(going) == len(names) else None
        removals += [Removal(class_name, names[k - start], filter, reasons[k], kept=k == best) for k in going]
        left[class_name] = tuple(name for k, name in enumerate(names, start) if k not in reasons or k == best)
        start += len(names)
    return LabelSet(left, label_set.about, label_set.changes), removals


def doubtful_names(label_set: LabelSet) -> list[str]:
    """Defects that need no encoder, in words: names that stand in several classes, class names among the names of another class,
    and repetitions inside a class."""
    owners: dict[str, list[str]] = {}
    for class_name, names in label_set.items():
        for name in names:
            owners.setdefault(normal_form(name), []).append(class_name)
    found = [
        f"{form!r} stands {len(where)} times, in {', '.join(dict.fromkeys(where))}" for form, where in owners.items() if len(where) > 1
    ]
    for class_name in label_set:
        others = [owner for owner in owners.get(normal_form(class_name), ()) if owner != class_name]
        found += [f"the class {class_name!r} is a subclass of {owner!r}" for owner in others]
    return found

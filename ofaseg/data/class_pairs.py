"""(photo, class) pairs of a split: what a binary segmentation model trains on and is tested with.

Where the pairs come from is a named choice (`PAIR_SOURCES`), never a mixture:

- masks: every class that a row's label map shows, if only by one pixel, in the order of the row ids;
- official, hsnet: the published lists, see `pair_lists`;
- list: a text or JSON file of one's own, numbered as the lists of the benchmark, or without one by the class ids of the vocabulary;
  one file may hold the pairs of training and of tests.

Training takes the pairs of base classes, testing those of novel ones. Which of the test pairs count is named too (`TEST_SUBSETS`):

- all: every pair once, in the order of photo and class;
- first1000: the first 1,000 of these, as Fusioner's code tests on COCO-20i (many are of the most frequent class);
- hsnet1000: the 1,000 one-shot episodes of HSNet's test: on PASCAL-5i the list from its beginning again until there are 1,000, elsewhere
  drawn, first a class, then a photo of it, by its random state 0;
- lseg1000: the same without drawing a support photo, as LSeg's zero-shot test (`--nshot 0`) does.
"""

import logging
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ofaseg.data.folds import ClassSplit, FoldError, benchmark_facts, class_ids
from ofaseg.data.pair_lists import PUBLISHED, PairList, coco_year, published_pairs, read_pair_file, rows_of_photos
from ofaseg.data.present_classes import PresentClasses
from ofaseg.data.rows import ShardError
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

PAIR_SOURCES = ("masks", *PUBLISHED, "list")
TEST_SUBSETS = ("all", "first1000", "hsnet1000", "lseg1000")
_EPISODES = 1000


@dataclass(frozen=True)
class PairIndex:
    """P pairs in a fixed order: `rows[p]` is the row of pair p, `classes[p]` its class id; a pair may stand there twice."""

    rows: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PairChoice:
    """Which pairs.

    Attributes:
        source: one of `PAIR_SOURCES`.
        benchmark, fold: whose published lists; benchmark also says how "hsnet1000" is drawn. "" for a split of one's own.
        lists: the folder of the published lists, or the file of one's own.
        subset: of test pairs, one of `TEST_SUBSETS`.
        skip_bad: leave out, with a warning, rows whose label map cannot be read and pairs whose photo is not in the shards; otherwise
            both are refused.

    Raises:
        FoldError: an unknown name, or published lists without a benchmark.
    """

    source: str = "masks"
    benchmark: str = ""
    fold: int = 0
    lists: str = ""
    subset: str = "all"
    skip_bad: bool = True

    def __post_init__(self):
        for name, allowed in (("source", PAIR_SOURCES), ("subset", TEST_SUBSETS)):
            if getattr(self, name) not in allowed:
                raise FoldError(f"{name} of pairs is {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        if self.source in PUBLISHED and not self.benchmark:
            raise FoldError(f"{self.source} lists are those of a benchmark; name it and a fold, or take the pairs from masks")


def choose_pairs(present: PresentClasses, vocabulary: ClassVocabulary, split: ClassSplit, choice: PairChoice, training: bool) -> PairIndex:
    """The pairs of a split for training (base classes) or testing (novel classes).

    Raises:
        FoldError: unknown names; a list of one's own holds a class of neither side.
        ShardError: a list or a label map cannot be read, photos are missing, a class that no photo shows was to be drawn, or no pair
            is left.
    """
    if present.unreadable and not choice.skip_bad:
        raise ShardError(next(iter(present.unreadable.values())))
    listed = _listed(present, vocabulary, split, choice, training)
    if not training:
        order = _drawing_order(vocabulary, split, choice)
        listed = listed._replace(pairs=subset_of_pairs(listed.pairs, choice.subset, choice.benchmark, order))
    found = rows_of_photos(present.ids, [photo for photo, _ in listed.pairs])
    missing = [photo for (photo, _), row in zip(listed.pairs, found) if row is None]
    if missing:
        _report_missing(missing, listed, choice.skip_bad)
    kept = [(row, k) for (_, k), row in zip(listed.pairs, found) if row is not None and row not in present.unreadable]
    if not kept:
        side = "base" if training else "novel"
        raise ShardError(f"{listed.source}: no pair of a {side} class is left; check the classes that are held out, and the split")
    rows, classes = (np.array(values, dtype=np.int64) for values in zip(*kept))
    _check_shown(present, vocabulary, rows, classes, listed.source)
    return PairIndex(rows, classes)


def _drawing_order(vocabulary: ClassVocabulary, split: ClassSplit, choice: PairChoice) -> tuple[int, ...]:
    """The novel classes in the order in which episodes are drawn from them: the benchmark's, whatever that of the vocabulary is."""
    ids = class_ids(vocabulary, choice.benchmark) if choice.benchmark else split.novel
    return tuple(k for k in ids if k in split.novel)


def _listed(present: PresentClasses, vocabulary: ClassVocabulary, split: ClassSplit, choice: PairChoice, training: bool) -> PairList:
    """(photo id, class id) of every pair of the right side, before a subset is taken."""
    wanted = split.base if training else split.novel
    if choice.source == "masks":
        rows = present.rows()
        keep = np.isin(present.classes, wanted)
        pairs = sorted((present.ids[row], int(k)) for row, k in zip(rows[keep].tolist(), present.classes[keep]))
        return PairList(pairs, "the label maps")
    if choice.source == "list":
        pairs = read_pair_file(choice.lists, choice.benchmark, coco_year(training) if choice.benchmark == "coco20i" else "")
        pairs = _as_class_ids(pairs, vocabulary, choice)
        wrong = next((pair for pair in pairs if pair[1] not in split.base + split.novel), None)
        if wrong is not None:
            problem = f"class {wrong[1]} of photo {wrong[0]!r} is neither base nor novel; correct the list or the split"
            raise FoldError(f"{choice.lists}: {problem}")
        kept = [pair for pair in pairs if pair[1] in wanted]
        if len(kept) < len(pairs):
            side = "base" if training else "novel"
            logger.info("%s: %d of %d pairs are of %s classes, the others are not for this", choice.lists, len(kept), len(pairs), side)
        return PairList(kept, str(choice.lists))
    listed = published_pairs(choice.benchmark, choice.source, choice.lists, training, choice.fold)
    return listed._replace(pairs=_as_class_ids(listed.pairs, vocabulary, choice))


def _as_class_ids(pairs: list[tuple[str, int]], vocabulary: ClassVocabulary, choice: PairChoice) -> list[tuple[str, int]]:
    ids = class_ids(vocabulary, choice.benchmark) if choice.benchmark else range(len(vocabulary))
    wrong = next((pair for pair in pairs if pair[1] >= len(ids)), None)
    if wrong is not None:
        problem = f"class number {wrong[1]} of photo {wrong[0]!r}, but there are {len(ids)} classes; correct the list"
        raise ShardError.at(choice.lists, problem)
    return [(photo, ids[number]) for photo, number in pairs]


def subset_of_pairs(
    pairs: list[tuple[str, int]], subset: str, benchmark: str = "", classes: Optional[tuple[int, ...]] = None
) -> list[tuple[str, int]]:
    """The test pairs that count, in the order of the test; see the module's docstring.

    Args:
        pairs: (photo id, class id) in the order of the list.
        classes: the classes that drawn episodes are of, in the order of the benchmark; by default those of `pairs`, ascending.

    Raises:
        ShardError: no pair shows a class that episodes are drawn from.
    """
    if subset == "all":
        return sorted(pairs)
    if subset == "first1000":
        return sorted(pairs)[:_EPISODES]
    if benchmark and benchmark_facts(benchmark)["hsnet_episodes"] == "cyclic":
        return [pairs[i % len(pairs)] for i in range(_EPISODES)] if pairs else []
    order = list(classes) if classes else sorted({k for _, k in pairs})
    return _drawn_episodes(pairs, order, supports=1 if subset == "hsnet1000" else 0)


def _drawn_episodes(pairs: list[tuple[str, int]], classes: list[int], supports: int) -> list[tuple[str, int]]:
    """A class uniformly, then a photo of it; support photos are drawn again while they are the photo itself."""
    photos: dict[int, list[str]] = {k: [] for k in classes}
    for photo, k in pairs:
        photos[k].append(photo)
    empty = next((k for k in classes if not photos[k]), None)
    if empty is not None:
        raise ShardError(f"episodes are drawn from each novel class, but no photo shows class {empty}; test on all pairs instead")
    state = np.random.RandomState(0)  # the generator of the published code, whose draws new generators do not repeat

    def draw(count: int) -> int:
        return int(state.choice(count, 1, replace=False)[0])

    episodes = []
    for _ in range(_EPISODES):
        k = classes[draw(len(classes))]
        number = draw(len(photos[k]))
        episodes.append((photos[k][number], k))
        drawn = 0
        while drawn < supports and len(photos[k]) > 1:
            drawn += draw(len(photos[k])) != number
    return episodes


def _report_missing(missing: list[str], listed: PairList, skip: bool) -> None:
    problem = f"photos of {len(missing)} of {len(listed.pairs)} pairs are not in the shards, the first is {missing[0]!r}"
    if not skip or len(missing) == len(listed.pairs):
        raise ShardError(f"{listed.source}: {problem}; write the shards with all photos of the lists, or take the pairs from masks")
    logger.warning("%s: %s; they are left out", listed.source, problem)


def _check_shown(present: PresentClasses, vocabulary: ClassVocabulary, rows: np.ndarray, classes: np.ndarray, source: str) -> None:
    """Warns of pairs whose label map does not show the class. Raises ShardError when that is so of all."""
    shown = np.isin(rows * len(vocabulary) + classes, present.rows() * len(vocabulary) + present.classes)
    if shown.all():
        return
    first = int(np.flatnonzero(~shown)[0])
    example = f"{present.ids[rows[first]]!r} shows no {vocabulary.names[classes[first]]!r}"
    if not shown.any():
        raise ShardError(
            f"{source}: not one of the {len(rows)} pairs fits its label map ({example}); are the class numbers those of the lists?"
        )
    logger.warning("%s: %d of %d pairs do not fit their label maps, the first: %s", source, (~shown).sum(), len(rows), example)

"""Which classes are held out: the folds of PASCAL-5i and COCO-20i, and a user's own base and novel classes.

`folds.json` holds the benchmarks: class names in the order of their published numbers (each as published, in natural words, and
under other names that datasets use), the rule by which a fold holds classes out, and the sizes of the published lists of pairs.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple, Sequence

from ofaseg.vocabulary import ClassVocabulary, VocabularyError

BENCHMARKS = ("pascal5i", "coco20i")
BACKGROUND_NAMES = ("background", "__bg__")
"""Names of a class that stands for "none of the others": it is neither base nor novel."""
_AS_PUBLISHED, _NATURAL = 0, 1


class FoldError(VocabularyError):
    """A benchmark, fold or list of held-out classes that does not exist or does not fit the class vocabulary."""


class ClassSplit(NamedTuple):
    """Class ids of a vocabulary: those trained on, and those seen at test time only; both ascending."""

    base: tuple[int, ...]
    novel: tuple[int, ...]


@functools.lru_cache(maxsize=1)
def _benchmarks() -> dict:
    return json.loads((Path(__file__).parent / "folds.json").read_text(encoding="utf-8"))


def benchmark_facts(benchmark: str) -> dict:
    """The entry of a benchmark in folds.json. Raises FoldError for an unknown name."""
    if benchmark not in _benchmarks():
        raise FoldError(f"unknown benchmark {benchmark!r}; choose from {', '.join(BENCHMARKS)}")
    return _benchmarks()[benchmark]


def class_names(benchmark: str, natural: bool = False) -> tuple[str, ...]:
    """The class names of a benchmark in its order, without background.

    Args:
        natural: "potted plant" in place of "pottedplant", the published spelling. Scores depend on it, for models read the names.

    Raises:
        FoldError: an unknown benchmark.
    """
    return tuple(spellings[_NATURAL if natural else _AS_PUBLISHED] for spellings in benchmark_facts(benchmark)["classes"])


def held_out(benchmark: str, fold: int) -> tuple[int, ...]:
    """Numbers (from 0, background not counted) of the classes that a fold holds out.

    PASCAL-5i holds out blocks of five, COCO-20i every fourth class (Shaban et al. 2017; Nguyen and Todorovic 2019).

    Raises:
        FoldError: an unknown benchmark, or a fold outside 0..3.
    """
    facts = benchmark_facts(benchmark)
    folds, number = facts["folds"], len(facts["classes"])
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds:
        raise FoldError(f"{benchmark} has the folds 0..{folds - 1}, not {fold!r}; choose one of them")
    size = number // folds
    return tuple(range(fold * size, (fold + 1) * size)) if facts["held_out"] == "block" else tuple(range(fold, number, folds))


def class_ids(vocabulary: ClassVocabulary, benchmark: str) -> tuple[int, ...]:
    """The class id in `vocabulary` of each class of a benchmark, found by any of its spellings; other classes may stand between.

    Raises:
        FoldError: a class is not there, or under two names.
    """
    places = {name: k for k, name in enumerate(vocabulary.names)}
    ids, missing = [], []
    for spellings in benchmark_facts(benchmark)["classes"]:
        found = sorted({places[name] for name in spellings if name in places})
        if len(found) > 1:
            names = " and ".join(repr(vocabulary.names[k]) for k in found)
            raise FoldError(f"{vocabulary.source}: {names} are one class of {benchmark}; merge them, or name your own novel classes")
        ids += found
        missing += [] if found else [spellings[_AS_PUBLISHED]]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        problem = f"{len(missing)} of the {len(ids) + len(missing)} classes of {benchmark} are not in the vocabulary ({names})"
        raise FoldError(f"{vocabulary.source}: {problem}; write the shards with `prepare.py {benchmark}`, or name your own novel classes")
    return tuple(ids)


def fold_split(vocabulary: ClassVocabulary, benchmark: str, fold: int) -> ClassSplit:
    """Base and novel classes of a fold as class ids of `vocabulary`.

    Raises:
        FoldError: as `held_out` and `class_ids`.
    """
    novel = set(held_out(benchmark, fold))
    ids = class_ids(vocabulary, benchmark)
    sides = [sorted(k for number, k in enumerate(ids) if (number in novel) == side) for side in (False, True)]
    return ClassSplit(*map(tuple, sides))


def own_split(vocabulary: ClassVocabulary, novel_names: Sequence[str] = ()) -> ClassSplit:
    """A split of one's own: the classes `novel_names` are novel, or where none are given those marked `novel` in the vocabulary.

    A class named as one of `BACKGROUND_NAMES` belongs to neither side.

    Raises:
        FoldError: no class is novel or none is left over, or a name is not in the vocabulary.
    """
    unknown = [name for name in novel_names if name not in vocabulary.names]
    if unknown:
        raise FoldError(f"{vocabulary.source}: no class {unknown[0]!r} to hold out; the classes are {_shown(vocabulary.names)}")
    marks = [name in novel_names for name in vocabulary.names] if novel_names else list(vocabulary.novel)
    if not any(marks):
        raise FoldError(f"{vocabulary.source}: no class is marked novel; name the novel classes, or a benchmark and a fold")
    objects = [k for k, name in enumerate(vocabulary.names) if name.lower() not in BACKGROUND_NAMES]
    split = ClassSplit(tuple(k for k in objects if not marks[k]), tuple(k for k in objects if marks[k]))
    if not split.base or not split.novel:
        side = "base" if not split.base else "novel"
        raise FoldError(f"{vocabulary.source}: no {side} class is left beside background; hold out some of the classes, not all")
    return split


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

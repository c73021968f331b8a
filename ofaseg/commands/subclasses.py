"""Label sets of subclasses: asked of a language model, cleaned, filtered by similarity, and checked.

Exit status: 0 when all is well, 1 when classes are left without an answer or defects were found, 2 for a wrong command line.
"""

import argparse
import functools
import json
from typing import Optional

from ofaseg.atomic import atomic_write
from ofaseg.commands import common, subclass_generation
from ofaseg.subclasses import filters
from ofaseg.subclasses.label_set import LabelSet, load_label_set
from ofaseg.vocabulary import parse_class_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    generate = actions.add_parser("generate", help="ask a language model for the subclasses of every class")
    subclass_generation.add_arguments(generate)
    clean = actions.add_parser("clean", help="write a label set without blanks, underscores, bracketed expansions, repetitions")
    _add_file_arguments(clean, writes=True)
    clean.add_argument("--keep-duplicates", action="store_true", help="leave repeated names in; they count as often as they stand")
    clean.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="a class of the file by the name in your class list"
    )
    filter = actions.add_parser("filter", help="remove names by the similarity of their text embeddings")
    _add_file_arguments(filter, writes=True)
    _add_filter_arguments(filter)
    check = actions.add_parser("check", help="say what is wrong or doubtful in a label set")
    _add_file_arguments(check, writes=False)


def _add_file_arguments(parser: argparse.ArgumentParser, writes: bool) -> None:
    parser.add_argument("label_set", help="JSON file {class name: [subclass names]}")
    parser.add_argument("--class-names", default="", help="the classes it must have: a file with one per line, or a comma-separated list")
    if writes:
        parser.add_argument("--out", required=True, help="the label set to write")
        parser.add_argument("--report", default="", metavar="FILE", help="write what was changed or removed, and why, as JSON")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def _add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    weighted = "with a weight as FOLDER=3; several are averaged"
    add("--encoder", action="append", default=[], metavar="FOLDER[=WEIGHT]", help=f"local transformers text encoder, {weighted}")
    add("--checkpoint", default="", metavar="FILE[=WEIGHT]", help="SimSeg or CLIP checkpoint whose text tower is the encoder")
    add("--bpe-dir", default="", help="tokenizer of --checkpoint, when it is not where the checkpoint was trained")
    add("--outlier", type=float, default=None, metavar="S", help="remove the odd one of two names at most S similar (published: 0.46)")
    add("--within-class", action="store_true", help="--outlier compares names of one class only (published: all)")
    add("--near-duplicate", type=float, default=None, metavar="S", help="remove names at least S similar to an earlier one of the class")
    add("--other-superclass", type=float, default=None, metavar="S", help="remove names at least S similar to another class's name")
    add("--keep", type=int, default=0, metavar="N", help="at the end keep the first N names of a class (0 = all)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")


def run(args) -> int:
    return {"generate": subclass_generation.run, "clean": _clean, "filter": _filter, "check": _check}[args.action](args)


def _classes(args) -> Optional[tuple[str, ...]]:
    return parse_class_names(args.class_names) if args.class_names else None


def _clean(args) -> int:
    pairs = [pair.partition("=") for pair in args.rename]
    if not all(equals and old and new for old, equals, new in pairs):
        raise ValueError(f"--rename {args.rename}: write OLD=NEW")
    renames = {old.strip(): new.strip() for old, _, new in pairs}
    label_set = load_label_set(args.label_set, _classes(args), keep_duplicates=args.keep_duplicates, renames=renames)
    changes = [str(change) for change in label_set.changes]
    subclass_generation.show("changed", changes)
    label_set.save(args.out)
    _write_report(args.report, [vars(change) for change in label_set.changes])
    print(f"{len(changes)} names changed or taken out; {_counts(label_set)}; written: {args.out}")
    return 0


def _filter(args) -> int:
    chosen = [
        (args.other_superclass, filters.filter_other_superclass),
        (args.near_duplicate, filters.filter_near_duplicates),
        (args.outlier, functools.partial(filters.filter_outliers, within_class=args.within_class)),
    ]
    if all(cutoff is None for cutoff, _ in chosen) and not args.keep:
        raise ValueError("no filter: give --outlier, --near-duplicate, --other-superclass or --keep")
    label_set = load_label_set(args.label_set, _classes(args))
    removals: list[filters.Removal] = []
    if any(cutoff is not None for cutoff, _ in chosen):
        encoders = _encoders(args)
        for cutoff, apply in chosen:
            if cutoff is not None:
                label_set, removed = apply(label_set, encoders, cutoff)
                removals += removed
    if args.keep:
        label_set, removed = filters.keep_first(label_set, args.keep)
        removals += removed
    subclass_generation.show("filter", [str(removal) for removal in removals])
    if label_set.about:
        steps = {name: getattr(args, name) for name in ("outlier", "within_class", "near_duplicate", "other_superclass", "keep")}
        label_set.about = label_set.about | {"filtered": {**steps, "encoders": [*args.encoder, *filter(None, [args.checkpoint])]}}
    label_set.save(args.out)
    _write_report(args.report, [removal.to_json() for removal in removals])
    print(f"{sum(not removal.kept for removal in removals)} names removed; {_counts(label_set)}; written: {args.out}")
    return 0


def _encoders(args) -> list[tuple[filters.Encode, float]]:
    """The text encoders of the command line with their weights. Raises ValueError when there is none."""
    from ofaseg.subclasses.encoders import TransformersTextEncoder

    device = common.choose_device(args.device)
    found = []
    for text in args.encoder:
        folder, weight = _weighted(text)
        found.append((TransformersTextEncoder(folder, device), weight))
    if args.checkpoint:
        path, weight = _weighted(args.checkpoint)
        found.append((_text_tower(path, args.bpe_dir, device), weight))
    if not found:
        raise ValueError("no text encoder: give --encoder (a local transformers folder) or --checkpoint (SimSeg, CLIP)")
    return found


def _weighted(text: str) -> tuple[str, float]:
    path, equals, number = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return path, float(number)
    except ValueError as error:
        raise ValueError(f"{text!r}: {number!r} is no weight; write PATH or PATH=NUMBER") from error


def _text_tower(path: str, bpe_dir: str, device) -> filters.Encode:
    """Names -> vectors of the text tower of a checkpoint; as they are, without a sentence around them, as published."""
    from ofaseg.checkpoints import load_model

    model, task = load_model(path, class_names="thing", device=device, overrides={"bpe_dir": bpe_dir or None})
    if not hasattr(task, "prompts_of"):
        raise ValueError(f"{path}: this model has no text tower that makes vectors of names; give one of SimSeg or CLIP")
    task.templates = ("{}",)

    def encode(names):
        model.set_classes(task.prompts_of(names))
        return model.class_embeddings()

    return encode


def _check(args) -> int:
    class_names = _classes(args)
    raw = load_label_set(args.label_set, class_names, clean=False)
    changes = [str(change) for change in load_label_set(args.label_set, class_names).changes]
    doubts = filters.doubtful_names(raw)
    subclass_generation.show("to clean", changes)
    subclass_generation.show("doubtful", doubts)
    print(f"{_counts(raw)}; {len(changes)} names to clean, {len(doubts)} doubtful")
    return 1 if changes or doubts else 0


def _counts(label_set: LabelSet) -> str:
    numbers = [len(names) for names in label_set.values()]
    return f"{len(numbers)} classes, {sum(numbers)} subclasses, {min(numbers)} to {max(numbers)} a class"


def _write_report(path: str, entries: list[dict]) -> None:
    if path:
        with atomic_write(path, "w") as file:
            file.write(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")

"""`ofaseg evaluate --robustness`: the same photos under several namings of the classes, in one table."""

import argparse
import copy
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.evaluation import namings, report, robustness
from ofaseg.evaluation.evaluator import EvaluationRun, evaluate_batches, rank_indices, spread
from ofaseg.evaluation.namings import Naming
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.evaluation.robustness import NamingEvaluator, OrderCheck, Row
from ofaseg.vocabulary import ClassVocabulary, parse_class_names

logger = logging.getLogger(__name__)

CHOICES = ("plain", "synonyms", "subclasses", "distractors", "order")
DISTRACTORS = (50, 200)
"""Numbers of names beside the classes' own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the report."""
    parser.add_argument(
        "--robustness",
        nargs="*",
        choices=CHOICES,
        default=None,
        help="instead: one table over namings of the classes, with --out robustness.json and .md (default: all there are names for)",
    )
    parser.add_argument("--synonyms", default="", help="with --robustness: JSON {class: [names]}, or lines id:name,synonym,...")
    parser.add_argument("--distractors", default="", help="with --robustness: names of no class, file or list (default: built-in nouns)")
    parser.add_argument("--naming-seed", type=int, default=1, help="with --robustness: seed of the distractors and of the class order")


def without_subclasses(overrides: dict) -> dict:
    """The settings that the report's model is loaded with: it is given --subclasses as names of their own, in one of the rows.

    Raises:
        ValueError: the names would be read twice, --fusion or --override subclasses=... beside --robustness.
    """
    if "fusion" in overrides:
        raise ValueError("--robustness reads --subclasses as names of their own, without a fusion; leave --fusion out")
    return {key: value for key, value in overrides.items() if key != "subclasses"} | {"subclasses": ""}


def evaluate(args, model, task, rank: int) -> int:
    """The report on one of the ranks; rank 0 prints and writes. Status 1 when the order of the names mixes up classes."""
    vocabulary = task.vocabulary
    post = task.post_process(**common.post_process_changes(args))
    wanted = planned_namings(args, vocabulary)
    order = OrderCheck() if "order" in (args.robustness or CHOICES) else None
    bad_rows: list[str] = []
    start = namings.official(vocabulary)
    trained = _names_are_trained(model, task)
    photos = len(rank_indices(len(_rows(args, task))))
    passes = 1 + trained + len(wanted) + (order is not None)
    with tqdm(total=photos * passes, unit="image", disable=None if rank == 0 else True) as bar:

        def score(naming: Naming, on_map: Optional[Callable] = None, text_made: bool = True) -> Row:
            bar.set_description(naming.title)
            problem = _prepare(model, task, naming) if text_made else ""
            if problem:
                bar.update(photos)
                return Row(naming, problem=problem)
            result = _pass(args, model, task, vocabulary, naming, robustness.post_for(post, naming), bar, on_map)
            bad_rows[:] = result.bad_rows
            return Row(naming, result.scores)

        first = [score(replace(start, title="class vectors as trained"), text_made=False)] if trained else []
        rows = [score(start, order and order.remember), *first]
        if rows[0].scores is None:
            raise ValueError(rows[0].problem)
        rows += [score(naming) for naming in wanted]
        check = None
        if order is not None:
            rows.append(score(namings.permuted(start, args.naming_seed), order.compare))
            check = order.compute(must_hold=not task.reads_class_order)
    if rank == 0:
        _report(args, rows, check, post, bad_rows)
    return 1 if (check and check["passed"] is False) or (args.strict and bad_rows) else 0


def planned_namings(args, vocabulary: ClassVocabulary) -> list[Naming]:
    """What the options ask for beside the official names and another order.

    Raises:
        VocabularyError: a file that cannot be used, or too few distractors.
        ValueError: synonyms or subclasses are asked for without a file.
    """
    choices = args.robustness or CHOICES
    for choice in ("synonyms", "subclasses"):
        if choice in args.robustness and not getattr(args, choice):
            raise ValueError(f"--robustness {choice} needs --{choice} FILE with other names of the classes")
    tables = {key: namings.read_names(getattr(args, key), vocabulary) for key in ("synonyms", "subclasses") if getattr(args, key)}
    found = [namings.plain(vocabulary)] if "plain" in choices else []
    if "synonyms" in choices and "synonyms" in tables:
        found.append(namings.synonyms(vocabulary, tables["synonyms"]))
    if "subclasses" in choices and "subclasses" in tables:
        found.append(namings.subclasses(vocabulary, tables["subclasses"]))
    if "distractors" in choices:
        words = parse_class_names(args.distractors) if args.distractors else namings.common_nouns()
        usable = namings.usable_distractors(words, vocabulary, tables.values(), args.naming_seed)
        found += [namings.with_distractors(vocabulary, usable, count) for count in DISTRACTORS]
    return found


def _rows(args, task) -> list[int]:
    total = len(task.reader(args.split))
    return spread(total, args.limit or total)


def _set_names(model, task, names) -> None:
    task.set_class_names(ClassVocabulary(tuple(names), source="--robustness"))
    task.give_classes(model)


def _prepare(model, task, naming: Naming) -> str:
    """Gives the model the names and lets it segment one small photo; what it says against them, "" when all is well.

    Every rank gets the same answer, so that none waits for another that has given up.
    """
    try:
        _set_names(model, task, naming.names)
        batch = task.encode_image_for_predict(np.zeros((32, 32, 3), np.uint8))
        task.predict_batch(model, batch["net_input"], batch["native_sizes"], PostProcess())
    except ValueError as error:
        logger.warning("%s: left out: %s", naming.title, error)
        return str(error)
    return ""


def _names_are_trained(model, task) -> bool:
    """Whether the class vectors of the checkpoint are others than its names make, so that every other naming starts from less."""
    vocabulary, loaded = task.vocabulary, model.class_embeddings().detach()
    trial = copy.deepcopy(model)
    _set_names(trial, task, vocabulary.names)
    made = trial.class_embeddings().detach()
    task.set_class_names(vocabulary)
    return not torch.allclose(loaded.float(), made.float(), rtol=1e-2, atol=1e-2 * float(made.abs().max()))


def _pass(args, model, task, vocabulary, naming: Naming, post: PostProcess, bar: tqdm, on_map: Optional[Callable]) -> EvaluationRun:
    """All photos of this rank under one naming, which the model has been given."""
    dataset = task.photo_dataset(args.split, training=False)
    dataset.vocabulary = vocabulary  # the labels stay what they are
    rows = spread(len(dataset), args.limit or len(dataset))
    mine = [rows[i] for i in rank_indices(len(rows))]
    batches = dataset.batch_by_size(mine, max_sentences=args.batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=args.num_workers)
    evaluator = NamingEvaluator(vocabulary, naming)

    def predict(batch):
        return task.predict_batch(model, batch["net_input"], batch["native_sizes"], post)

    def on_batch(batch, outputs):
        if on_map is not None:
            for row, output in zip(batch["id"].tolist(), outputs):
                on_map(row, evaluator.class_map(output.label_map))
        bar.update(len(outputs) + len(batch.get("bad_rows", ())))

    return evaluate_batches(loader, predict, evaluator, on_batch)


def _report(args, rows: list[Row], check: Optional[dict], post: PostProcess, bad_rows: list[str]) -> None:
    text = robustness.markdown(rows)
    if check is not None:
        text += f"\nClass order: {robustness.order_line(check)}.\n"
    print(text, end="")
    if check is not None and check["passed"] is False:
        logger.error("%s", robustness.order_line(check))
    if bad_rows:
        print(f"{len(bad_rows)} rows left out")
    if args.out:
        about = {"checkpoint": str(args.checkpoint), "shards": str(args.shards), "split": args.split, "naming_seed": args.naming_seed}
        about |= {"images": rows[0].scores["images"], "post_process": asdict(post), "bad_rows": bad_rows}
        report.write_json(Path(args.out) / "robustness.json", about | robustness.to_json(rows, check))
        report.write_text(Path(args.out) / "robustness.md", text)
        print(f"written: {Path(args.out) / 'robustness.json'}, robustness.md")

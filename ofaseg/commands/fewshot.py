"""Scores (photo, class) pairs of held-out classes: mIoU over the novel classes and FB-IoU, as few-shot and zero-shot papers give them.

Beside the model stand two rows that anybody has to beat: everything foreground, and the model with its class names exchanged. Runs on
one process, or on several under torchrun; the scores are the same.
"""

import argparse
import logging
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.commands.evaluate import default_name
from ofaseg.evaluation import report
from ofaseg.evaluation.evaluator import evaluate_batches, rank_indices, spread
from ofaseg.evaluation.few_shot import FewShotEvaluator
from ofaseg.utils.arguments import at_least

logger = logging.getLogger(__name__)

EVERYTHING = "everything foreground"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of a model that is asked for one class at a time, such as Fusioner")
    parser.add_argument("shards", help="folder of shards")
    parser.add_argument("--split", default="val", help="which split (default: val)")
    parser.add_argument("--base", action="store_true", help="pairs of the base classes instead of the novel ones")
    parser.add_argument(
        "--exchange-names", type=int, default=0, metavar="SEED", help="also ask for each class by the name of another one, drawn by SEED"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="pairs at once")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode rows")
    parser.add_argument("--limit", type=at_least(0), default=0, help="only so many pairs, evenly spread (0 = all)")
    parser.add_argument("--out", default="", help="folder for fewshot.json and fewshot.md")
    parser.add_argument("--name", default="", help="name of the result in tables (default: from the checkpoint's path)")
    parser.add_argument("--class-names", default="", help="class names: a file with one per line, or a comma-separated list")
    parser.add_argument("--rename-classes", action="store_true", help="--class-names re-words the shards' classes one by one")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when rows had to be left out")
    common.add_override_arguments(parser)


def run(args) -> int:
    return common.on_ranks(args, evaluate)


def evaluate(args, device, rank: int) -> int:
    """The command on one of the ranks; rank 0 prints and writes."""
    model, task = _load(args, device)
    dataset = task.pair_dataset(args.split, training=False, base=args.base)
    pairs = spread(len(dataset), args.limit or len(dataset))
    mine = [pairs[i] for i in rank_indices(len(pairs))]
    side = task.split.base if args.base else task.split.novel
    shown = set(dataset.pairs.classes.tolist())
    classes = sorted(shown.intersection(side)) if args.base else task.tested_classes(side, shown)
    exchanged = exchanged_classes(classes, args.exchange_names) if args.exchange_names else {}
    found = {}
    with tqdm(total=len(mine) * (1 + bool(exchanged)), unit="pair", disable=None if rank == 0 else True) as bar:
        for row, names in (("model", {}), ("exchanged", exchanged)):
            if row == "model" or names:
                found[row] = _score(args, model, task, dataset, mine, classes, names, bar)
    everything, result = found["model"]
    if rank == 0:
        rows = {args.name or default_name(args.checkpoint): result.scores}
        rows |= {"names exchanged": found["exchanged"][1].scores} if exchanged else {}
        _report(args, rows | {EVERYTHING: everything}, result)
    return 1 if args.strict and result.bad_rows else 0


def exchanged_classes(classes, seed: int) -> dict[int, int]:
    """Class id -> another class of the list whose name it is asked for by; no class keeps its own.

    Raises:
        ValueError: fewer than two classes.
    """
    if len(classes) < 2:
        raise ValueError(f"names can only be exchanged among two classes or more, not {len(classes)}")
    generator = torch.Generator().manual_seed(seed)
    order = [classes[i] for i in torch.randperm(len(classes), generator=generator).tolist()]
    return dict(zip(order, order[1:] + order[:1]))


def _load(args, device):
    from ofaseg.checkpoints import load_model

    overrides = {"data": str(args.shards)} | common.parse_overrides(args.override)
    if args.rename_classes:
        overrides["rename_classes"] = True
    model, task = load_model(args.checkpoint, class_names=args.class_names or None, device=device, overrides=overrides)
    if not hasattr(task, "pair_dataset"):
        raise ValueError(f"{args.checkpoint}: this model is not asked for one class at a time; use `ofaseg evaluate`")
    return model.eval(), task


def _score(args, model, task, dataset, mine: list[int], classes, exchanged: dict[int, int], bar: tqdm):
    """(scores of everything foreground, scores of the model) over this rank's pairs, summed over the ranks."""
    batches = dataset.batch_by_size(mine, max_sentences=args.batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=args.num_workers)
    protocol = str(task.cfg.protocol)
    everything = FewShotEvaluator(task.vocabulary, classes, protocol)

    def predict(batch):
        asked = batch["net_input"]
        names = torch.tensor([[exchanged.get(k, k) for k in row] for row in asked["class_ids"].tolist()])
        everything.update(torch.ones_like(batch["target"], dtype=torch.bool), batch)
        return task.pair_logits(model, batch | {"net_input": asked | {"class_ids": names}}) > 0

    def on_batch(batch, outputs):
        bar.update(batch["nsentences"] + len(batch.get("bad_rows", ())))

    result = evaluate_batches(loader, predict, FewShotEvaluator(task.vocabulary, classes, protocol), on_batch)
    return everything.compute(), result


def _report(args, rows: dict[str, dict], result) -> None:
    name, scores = next(iter(rows.items()))
    table = report.few_shot_class_table(scores)
    lines = ["| | mIoU | FB-IoU | pairs |", "|---|---:|---:|---:|"]
    for row, values in rows.items():
        lines.append(f"| {row} | {report.percent(values['mIoU'])} | {report.percent(values['FB_IoU'])} | {values['pairs']} |")
    print(table)
    print("\n".join(lines))
    if result.bad_rows:
        print(f"{len(result.bad_rows)} rows left out; the first: {result.bad_rows[0]}")
    if args.out:
        about = {"name": name, "checkpoint": str(args.checkpoint), "shards": str(args.shards), "split": args.split, "base": args.base}
        others = {row: values for row, values in rows.items() if row != name}
        report.write_json(Path(args.out) / "fewshot.json", about | scores | {"beside": others, "bad_rows": result.bad_rows})
        report.write_text(Path(args.out) / "fewshot.md", "\n".join(lines) + "\n\n" + table)
        print(f"written: {Path(args.out) / 'fewshot.json'}, fewshot.md")

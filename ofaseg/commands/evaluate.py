"""Scores a checkpoint on a split of shards: JSON, a Markdown row, the confusion matrix, and examples for the report.

Runs on one process, or on several under torchrun; the scores are the same.
"""

import argparse
import logging
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofaseg.commands import common, evaluate_robustness
from ofaseg.evaluation import confusion, examples, pictures, report
from ofaseg.evaluation.evaluator import SemanticEvaluator, evaluate_batches, gather_texts, rank_indices, spread

logger = logging.getLogger(__name__)

EXAMPLE_SIDE = 1024
"""Long side of the stored examples at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="fairseq checkpoint (.pt), or exported model.safetensors")
    parser.add_argument("shards", help="folder of shards")
    parser.add_argument("--split", default="val", help="which split (default: val)")
    parser.add_argument("--batch-size", type=int, default=1, help="photos at once; photos of one size share a batch")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode rows")
    parser.add_argument("--limit", type=int, default=0, help="only so many rows, evenly spread over the split (0 = all)")
    parser.add_argument("--out", default="", help="folder for scores.json, scores.md, confusion.npy, examples and overlays")
    parser.add_argument(
        "--examples", type=int, default=4, help="photos kept under --out: so many best, so many worst (by their mIoU), so many random ones"
    )
    parser.add_argument("--examples-seed", type=int, default=1, help="seed of the random examples")
    parser.add_argument("--name", default="", help="name of the result in tables (default: from the checkpoint's path)")
    parser.add_argument("--selected-cols", default="", help="positions of image, label map and id in a TSV row, such as 0,1,2")
    parser.add_argument("--rename-classes", action="store_true", help="--class-names re-words the shards' classes one by one")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when rows had to be left out")
    evaluate_robustness.add_arguments(parser)
    common.add_model_arguments(parser)


def run(args) -> int:
    return common.on_ranks(args, evaluate)


def evaluate(args, device, rank: int) -> int:
    """The command on one of the ranks; rank 0 prints and writes."""
    model, task = _load(args, device)
    if args.robustness is not None:
        return evaluate_robustness.evaluate(args, model, task, rank)
    dataset = task.photo_dataset(args.split, training=False)
    rows = spread(len(dataset), args.limit or len(dataset))
    mine = [rows[i] for i in rank_indices(len(rows))]
    batches = dataset.batch_by_size(mine, max_sentences=args.batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=args.num_workers)
    post = task.post_process(**common.post_process_changes(args))
    evaluator = SemanticEvaluator(task.vocabulary)
    seen: list[int] = []

    def predict(batch):
        return task.predict_batch(model, batch["net_input"], batch["native_sizes"], post)

    with tqdm(total=len(mine), unit="image", disable=None if rank == 0 else True) as bar:

        def on_batch(batch, outputs):
            seen.extend(batch["id"].tolist())
            bar.update(len(outputs) + len(batch.get("bad_rows", ())))

        result = evaluate_batches(loader, predict, evaluator, on_batch)
    matrix = evaluator.matrix().numpy()
    if rank == 0:
        _report(args, result, task.vocabulary, post, matrix)
    if args.out:
        chosen = examples.choose(_all_scores(seen, evaluator.image_scores()), max(0, args.examples), args.examples_seed)
        _write_examples(Path(args.out), chosen, set(seen), dataset, predict, task.vocabulary, rank)
    return 1 if args.strict and result.bad_rows else 0


def _all_scores(rows: list[int], scores: list[float]) -> dict[int, float]:
    """Row -> mIoU of the photo over all ranks, from this rank's rows and their scores."""
    texts = gather_texts([f"{row} {score!r}" for row, score in zip(rows, scores, strict=True)])
    return {int(row): float(score) for row, score in map(str.split, texts)}


def _write_examples(out: Path, chosen: list[examples.ChosenPhoto], mine: set[int], dataset, predict, vocabulary, rank: int) -> None:
    """Segments the chosen photos once more, each on the rank that had it, so that no photo was kept in memory before."""
    for photo in chosen:
        photo.name = example_name(dataset.reader, photo.row)
    own = [photo for photo in chosen if photo.row in mine]
    for photo in tqdm(own, unit="example", disable=None if rank == 0 else True):
        batch = dataset.collater([dataset.load(photo.row)])
        write_example(out, photo.name, dataset.reader, photo.row, predict(batch)[0].label_map, batch["native_label_maps"][0], vocabulary)
    if rank == 0:
        examples.write_index(out / "examples", chosen)


def _load(args, device):
    from ofaseg.checkpoints import load_model

    overrides = {"data": str(args.shards)} | common.model_overrides(args)
    given = {"selected_cols": args.selected_cols, "rename_classes": args.rename_classes or None}
    overrides |= {key: value for key, value in given.items() if value}
    if args.robustness is not None:
        overrides = evaluate_robustness.without_subclasses(overrides)
    model, task = load_model(args.checkpoint, class_names=args.class_names or None, device=device, overrides=overrides)
    return model.eval(), task


def _report(args, result, vocabulary, post, matrix: np.ndarray) -> None:
    """Prints the table and writes scores.json, scores.md and confusion.npy."""
    name = args.name or default_name(args.checkpoint)
    table = report.markdown_table(report.with_constant(name, result.scores))
    print(report.class_table(result.scores))
    print(table)
    speed = result.images / max(result.seconds, 1e-9)
    summary = f"{result.images} images of {args.split} in {result.seconds:.1f} s ({speed:.1f} per second)"
    print(summary + (f"; {len(result.bad_rows)} rows left out" if result.bad_rows else ""))
    for message in result.bad_rows[:10]:
        print(f"  left out: {message}")
    if args.out:
        about = {
            "name": name,
            "checkpoint": str(args.checkpoint),
            "shards": str(args.shards),
            "split": args.split,
            "seconds": result.seconds,
        }
        settings = {"post_process": asdict(post), "bad_rows": result.bad_rows, "vocabulary": vocabulary.to_json()}
        report.write_json(Path(args.out) / "scores.json", about | result.scores | settings)
        report.write_text(Path(args.out) / "scores.md", table + "\n" + report.class_table(result.scores))
        if len(matrix) <= confusion.MOST_CLASSES:
            confusion.write_matrix(Path(args.out) / confusion.FILE, matrix)
        print(f"written: {Path(args.out) / 'scores.json'}, scores.md, {confusion.FILE}, examples and overlays beside them")


def default_name(checkpoint) -> str:
    """Folder and stem of a checkpoint's path."""
    path = Path(checkpoint)
    return f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem


def safe_name(text: str) -> str:
    """A file name made from an id."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "image"


def example_name(reader, index: int) -> str:
    """Folder name of a row's example: its id, with the row number where the id is no file name (two ids may look alike then)."""
    found = reader.read(index, columns=("id",)).get("id") if "id" in reader.columns else None
    name = str(found) if found is not None else f"row-{index}"
    return name if safe_name(name) == name else f"{safe_name(name)}-{index}"


def write_example(out: Path, name: str, reader, index: int, prediction, label_map, vocabulary) -> None:
    """Keeps one photo with both label maps under examples/<name>/ and draws overlays/<name>.png."""
    from ofaseg.data import codec

    image = codec.decode_image(reader.read(index, columns=("image",))["image"], where=reader.location(index))
    maps = [np.asarray(m.cpu(), dtype=np.int32) for m in (label_map, prediction)]
    image, (label_map, prediction) = pictures.shrink(image, maps, EXAMPLE_SIDE)
    folder = out / "examples" / name
    pictures.write(folder / "photo.jpg", pictures.encode(image, "JPEG", quality=95))
    pictures.write(folder / "labels.png", pictures.index_png(label_map, vocabulary.palette))
    pictures.write(folder / "prediction.png", pictures.index_png(prediction, vocabulary.palette))
    comparison = pictures.comparison(image, {"photo": None, "labels": label_map, "prediction": prediction}, vocabulary)
    pictures.write(out / "overlays" / f"{name}.png", pictures.encode(comparison))

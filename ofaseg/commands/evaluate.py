"""Scores a checkpoint on a split of shards: JSON, a Markdown row, the confusion matrix, and examples for the report.

Class maps are scored by mIoU; of models of mask proposals also segments by PQ and objects by mask AP, with --tasks.
Runs on one process, or on several under torchrun; the scores are the same.
"""

import argparse
import logging
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofaseg.commands import common, evaluate_robustness
from ofaseg.data.mask_target_dataset import INSTANCE, PANOPTIC, SEMANTIC
from ofaseg.evaluation import confusion, examples, pictures, report, segment_pictures
from ofaseg.evaluation.evaluator import (
    Evaluator,
    JointEvaluator,
    SemanticEvaluator,
    evaluate_batches,
    gather_texts,
    rank_indices,
    spread,
)
from ofaseg.evaluation.instance import InstanceEvaluator
from ofaseg.evaluation.panoptic import PanopticEvaluator
from ofaseg.structures import PanopticSegmentation
from ofaseg.utils.arguments import at_least

logger = logging.getLogger(__name__)

EXAMPLE_SIDE = 1024
"""Long side of the stored examples at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="fairseq checkpoint (.pt), or exported model.safetensors")
    parser.add_argument("shards", help="folder of shards")
    parser.add_argument("--split", default="val", help="which split (default: val)")
    parser.add_argument(
        "--tasks",
        default=SEMANTIC,
        help="what is scored, from one pass over the photos, of semantic (mIoU), instance (mask AP, needs pycocotools) and panoptic (PQ): "
        "semantic,instance,panoptic (default: semantic alone, whatever else the shards carry)",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="photos at once; photos of one size share a batch")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode rows")
    parser.add_argument("--limit", type=at_least(0), default=0, help="only so many rows, evenly spread over the split (0 = all)")
    parser.add_argument("--out", default="", help="folder for scores.json, scores.md, confusion.npy, examples and overlays")
    parser.add_argument(
        "--examples", type=int, default=4, help="photos kept under --out: so many best, so many worst (by their mIoU), so many random ones"
    )
    parser.add_argument("--examples-seed", type=int, default=1, help="seed of the random examples")
    parser.add_argument("--name", default="", help="name of the result in tables (default: from the checkpoint's path)")
    parser.add_argument("--selected-cols", default="", help="positions of image, label map and id in a TSV row, such as 0,1,2")
    parser.add_argument("--rename-classes", action="store_true", help="--class-names re-words the shards' classes one by one")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when rows had to be left out")
    parser.add_argument(
        "--absent-as-zero", action="store_true", help="PQ of base and novel classes with those absent from the split as 0, as FreeSeg's"
    )
    evaluate_robustness.add_arguments(parser)
    common.add_model_arguments(parser)


def run(args) -> int:
    return common.on_ranks(args, evaluate)


def evaluate(args, device, rank: int) -> int:
    """The command on one of the ranks; rank 0 prints and writes."""
    if args.robustness is not None and args.tasks != SEMANTIC:
        raise ValueError("--robustness compares class maps; leave --tasks out")
    model, task = _load(args, device)
    if args.robustness is not None:
        return evaluate_robustness.evaluate(args, model, task, rank)
    tasks = common.parse_tasks(args.tasks, task.output_kinds)
    dataset = task.photo_dataset(args.split, training=False, with_segments=tasks != (SEMANTIC,))
    evaluators = evaluators_for(tasks, task.vocabulary, dataset.reader.columns, args.absent_as_zero)
    rows = spread(len(dataset), args.limit or len(dataset))
    mine = [rows[i] for i in rank_indices(len(rows))]
    batches = dataset.batch_by_size(mine, max_sentences=args.batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=args.num_workers)
    post = task.post_process(**common.post_process_changes(args))
    options = {} if tasks == (SEMANTIC,) else {"tasks": tasks}
    seen: list[int] = []

    def predict(batch):
        return task.predict_batch(model, batch["net_input"], batch["native_sizes"], post, **options)

    with tqdm(total=len(mine), unit="image", disable=None if rank == 0 else True) as bar:

        def on_batch(batch, outputs):
            seen.extend(batch["id"].tolist())
            bar.update(len(outputs) + len(batch.get("bad_rows", ())))

        result = evaluate_batches(loader, predict, JointEvaluator(evaluators.values()), on_batch)
    semantic = evaluators.get(SEMANTIC)
    matrix = semantic.matrix().numpy() if semantic else None
    if rank == 0:
        _report(args, result, task, post, matrix)
    if args.out:
        scores = _all_scores(seen, semantic.image_scores() if semantic else [math.nan] * len(seen))
        choose = examples.choose if semantic else examples.choose_random
        chosen = choose(scores, max(0, args.examples), args.examples_seed)
        _write_examples(Path(args.out), chosen, set(seen), dataset, predict, task.vocabulary, rank)
    return 1 if args.strict and result.bad_rows else 0


def evaluators_for(tasks: Sequence[str], vocabulary, columns: Sequence[str], absent_as_zero: bool = False) -> dict[str, Evaluator]:
    """Task -> its evaluator.

    Raises:
        ValueError: the shards, with these columns, lack what a task is scored by.
        ImportError: pycocotools is missing, for objects.
    """
    segments = {"segment_map", "segments"} <= set(columns)
    if PANOPTIC in tasks and not segments:
        raise ValueError("--tasks panoptic: these shards have no columns segment_map and segments; convert the data set with its segments")
    if INSTANCE in tasks and not segments and "instances" not in columns:
        raise ValueError("--tasks instance: these shards have no objects (columns instances, or segments); convert the data set with them")
    makers = {
        SEMANTIC: lambda: SemanticEvaluator(vocabulary),
        INSTANCE: lambda: InstanceEvaluator(vocabulary),
        PANOPTIC: lambda: PanopticEvaluator(vocabulary, absent_as_zero),
    }
    return {name: make() for name, make in makers.items() if name in tasks}


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
        output = predict(batch)[0]
        write_example(out, photo.name, dataset.reader, photo.row, output.label_map, batch["native_label_maps"][0], vocabulary)
        if output.panoptic is not None:
            write_segments(out, photo.name, dataset.reader, photo.row, output.panoptic, batch, vocabulary)
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


def _report(args, result, task, post, matrix: Optional[np.ndarray]) -> None:
    """Prints the tables and writes scores.json, scores.md and, with the matrix of class maps, confusion.npy."""
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
            "tasks": args.tasks,
            "seconds": result.seconds,
        }
        settings = {"post_process": asdict(post), "bad_rows": result.bad_rows, "vocabulary": task.vocabulary.to_json()}
        if hasattr(task, "rules"):
            settings["mask_rules"] = asdict(task.rules)
        report.write_json(Path(args.out) / "scores.json", about | result.scores | settings)
        report.write_text(Path(args.out) / "scores.md", table + "\n" + report.class_table(result.scores))
        if matrix is not None and len(matrix) <= confusion.MOST_CLASSES:
            confusion.write_matrix(Path(args.out) / confusion.FILE, matrix)
        files = ["scores.md", *([confusion.FILE] if matrix is not None else ())]
        print(f"written: {Path(args.out) / 'scores.json'}, {', '.join(files)}, examples and overlays beside them")


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


def write_segments(out: Path, name: str, reader, index: int, panoptic: PanopticSegmentation, batch: dict, vocabulary) -> None:
    """Draws segments.jpg, the true ones, and panoptic.jpg in a photo's folder of examples, and overlays/<name>_panoptic.png."""
    from ofaseg.data import codec

    image = codec.decode_image(reader.read(index, columns=("image",))["image"], where=reader.location(index))
    drawings = {"panoptic": panoptic}
    if "native_segments" in batch:
        drawings["segments"] = true_segments(batch["native_segment_maps"][0], batch["native_segments"][0], vocabulary)
    for file, found in drawings.items():
        picture = segment_pictures.panoptic_picture(image, found, vocabulary, legend=False)
        picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        pictures.write(out / "examples" / name / f"{file}.jpg", pictures.encode(picture, "JPEG"))
    picture = segment_pictures.panoptic_picture(image, panoptic, vocabulary)
    pictures.write(out / "overlays" / f"{name}_panoptic.png", pictures.encode(picture))


def true_segments(segment_map: Tensor, entries: Sequence[dict], vocabulary) -> PanopticSegmentation:
    """The segments of a row of shards as those of a prediction."""
    marks = vocabulary.thing or (True,) * len(vocabulary)
    return PanopticSegmentation(segment_map, [entry | {"is_thing": marks[entry["class_id"]]} for entry in entries])

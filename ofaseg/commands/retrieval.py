"""Image-text retrieval of a dual encoder: recall at 1, 5 and 10 in both directions as JSON and a Markdown row.

Every photo and every caption is encoded once. Runs on one process, or on several under torchrun; the scores are the same.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.commands.evaluate import default_name
from ofaseg.evaluation import report
from ofaseg.evaluation.evaluator import gather_texts, rank_indices, spread, sum_over_ranks
from ofaseg.evaluation.retrieval_evaluator import RetrievalEvaluator
from ofaseg.utils.arguments import add_image_text_columns, at_least
from ofaseg.utils.precision import cast_weights_once

PUBLISHED_SIZES = (324, 288)
"""SimSeg's square resize and middle crop, pixels."""

ALONE = "no column says which rows are of one photo, so each counts as a photo of its own with one caption; --image-id-column names one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="fairseq checkpoint (.pt), exported model.safetensors, or official SimSeg or CLIP file")
    parser.add_argument("data", help="photos with captions: shards, .parquet, .csv[:image folder], saved dataset; several by commas")
    parser.add_argument("--split", default="val", help="which split (default: val)")
    add_image_text_columns(parser)
    parser.add_argument("--resize", type=int, default=0, help="square side that photos are resized to (default: crop x 324 / 288)")
    parser.add_argument("--crop", type=int, default=0, help="middle crop that the model reads (default: the checkpoint's; published: 288)")
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="photos at once")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode rows")
    parser.add_argument("--limit", type=at_least(0), default=0, help="only so many photos, evenly spread over the split (0 = all)")
    parser.add_argument("--out", default="", help="folder for retrieval.json and retrieval.md")
    parser.add_argument("--name", default="", help="name of the result in tables (default: from the checkpoint's path)")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when rows had to be left out")
    common.add_override_arguments(parser)


@dataclass
class RetrievalRun:
    """Scores (shares 0..1) over `images` photos and `captions` captions of all ranks, and the messages of rows left out."""

    scores: dict[str, float]
    images: int
    captions: int
    bad_rows: list[str]
    seconds: float


def run(args) -> int:
    return common.on_ranks(args, retrieve)


def retrieve(args, device, rank: int) -> int:
    """The command on one of the ranks; rank 0 prints and writes."""
    from ofaseg.checkpoints import load_dual_encoder
    from ofaseg.data.image_text_dataset import ImageTextDataset
    from ofaseg.data.image_text_source import ImageTextColumns
    from ofaseg.data.image_text_sources import open_image_text
    from ofaseg.data.image_text_transforms import ImageTextEvaluation

    resize, crop = args.resize, args.crop
    if args.batch_size < 1 or min(resize, crop, args.limit) < 0:
        raise ValueError("--batch-size is at least 1; --resize, --crop and --limit are not negative")
    source = open_image_text(args.data, args.split, ImageTextColumns.from_options(args))
    if source.apart and rank == 0:
        print(f"note: {ALONE}", file=sys.stderr)
    model, task = load_dual_encoder(args.checkpoint, device, common.parse_overrides(args.override))
    crop = crop or task.cfg.patch_image_size
    resize = resize or crop * PUBLISHED_SIZES[0] // PUBLISHED_SIZES[1]
    stride = model.grid_stride
    if crop % stride or resize < crop:
        raise ValueError(f"--resize {resize} --crop {crop}: the crop is a multiple of the patch ({stride}) and not above the resize")
    dataset = ImageTextDataset(source, task.tokenize, ImageTextEvaluation(resize, crop), training=False)
    done = encode_and_rank(model, task, dataset, args, device, rank)
    if rank == 0:
        report_run(args, done, {"resize": resize, "crop": crop})
    return 1 if args.strict and done.bad_rows else 0


@cast_weights_once()
def encode_and_rank(model, task, dataset, args, device, rank: int) -> RetrievalRun:
    """Embeds this rank's photos with all their captions and ranks those of all ranks. Raises ValueError without a usable row."""
    from ofaseg.models.text_encoders.by_length import encode_by_length

    start, images, captions, bad_rows = time.perf_counter(), 0, 0, []
    rows = spread(len(dataset), args.limit or len(dataset))
    mine = [rows[i] for i in rank_indices(len(rows))]
    batches = dataset.batch_by_size(mine, max_sentences=args.batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=args.num_workers)
    evaluator = RetrievalEvaluator()
    with tqdm(total=len(mine), unit="image", disable=None if rank == 0 else True) as bar:
        for batch in loader:
            bad_rows += batch["bad_rows"]
            bar.update(batch["nsentences"] + len(batch["bad_rows"]))
            if not batch["nsentences"]:
                continue
            with torch.no_grad(), task.autocast(device):
                photos = model.embed_image(batch["net_input"]["image"].to(device, non_blocking=True)).float()
                texts = encode_by_length(model.embed_text, **batch["caption_input"], device=device).float()
            evaluator.update(photos, texts, batch)
            images, captions = images + len(photos), captions + len(texts)
    bad_rows = gather_texts(bad_rows)
    scores = evaluator.compute(device)
    if not scores:
        raise ValueError("no row could be embedded" + (f"; the first problem: {bad_rows[0]}" if bad_rows else ": the split is empty"))
    total = sum_over_ranks(torch.tensor([images, captions])).tolist()
    return RetrievalRun(scores, *total, bad_rows, time.perf_counter() - start)


def report_run(args, done: RetrievalRun, sizes: dict) -> None:
    """Prints the table; writes retrieval.json (shares) and retrieval.md (percent) under --out."""
    name = args.name or default_name(args.checkpoint)
    table = report.retrieval_table([(name, done.scores | {"images": done.images, "captions": done.captions})])
    print(table)
    left_out = f"; {len(done.bad_rows)} rows left out" if done.bad_rows else ""
    print(f"{done.images} images and {done.captions} captions of {args.split} in {done.seconds:.1f} s{left_out}")
    for message in done.bad_rows[:10]:
        print(f"  left out: {message}")
    if args.out:
        about = {"name": name, "checkpoint": str(args.checkpoint), "data": args.data, "split": args.split, "seconds": done.seconds}
        about |= {name: getattr(args, name) for name in ("image_column", "caption_columns", "image_id_column") if getattr(args, name)}
        counts = {"images": done.images, "captions": done.captions, "bad_rows": done.bad_rows}
        report.write_json(Path(args.out) / "retrieval.json", about | done.scores | counts | sizes)
        report.write_text(Path(args.out) / "retrieval.md", table)
        print(f"written: {Path(args.out) / 'retrieval.json'}, retrieval.md")

"""A linear classifier on the frozen image tower: top-1 and top-5 accuracy as JSON and a Markdown row.

Features are computed once, from the middle crop, without augmentation. The published recipe augments every epoch (random crops,
AutoAugment) on ImageNet: LARS, rate 6.4, batches of 16,384, 90 epochs. Images lie in DATA/<split>/<class>/, in Parquet files or in
a saved dataset with a label column.
"""

import argparse
import logging
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.commands.evaluate import default_name
from ofaseg.evaluation import linear_probe, report
from ofaseg.utils.precision import cast_weights_once

logger = logging.getLogger(__name__)

PUBLISHED_BATCH, LEAST_STEPS = 16384, 16
RATES = {"lars": 6.4, "sgd": 0.1}
FEATURES = ("loda", "mean", "cls")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of a dual encoder: fairseq .pt, model.safetensors, or official SimSeg or CLIP file")
    parser.add_argument("data", help="folder of images by class, Parquet files, or a saved dataset")
    parser.add_argument("--train-split", default="train", help="which split is learned (default: train)")
    parser.add_argument("--split", default="val", help="which split is scored (default: val)")
    parser.add_argument("--image-column", default="", help="of tables (default: found by name)")
    parser.add_argument("--label-column", default="", help="of tables (default: found by name)")
    features_help = (
        "loda: top-k mean of projected patches, as in training; mean: of the tower's patches; cls: its CLS, which LoDA never trains"
    )
    parser.add_argument("--features", default="loda", choices=FEATURES, help=features_help)
    parser.add_argument("--size", type=int, default=0, help="middle crop in pixels (default: the checkpoint's; published: 224)")
    parser.add_argument("--optimizer", default="lars", choices=tuple(RATES), help="lars as published, or SGD with momentum 0.9")
    parser.add_argument("--lr", type=float, default=None, help="highest rate (default: 6.4 with lars, as published; 0.1 with sgd)")
    parser.add_argument("--epochs", type=int, default=90)
    batch_help = f"images of a step (default: {PUBLISHED_BATCH}, less where an epoch would have under {LEAST_STEPS} steps)"
    parser.add_argument("--batch-size", type=int, default=0, help=batch_help)
    parser.add_argument("--encode-batch-size", type=int, default=64, help="images that the tower reads at once")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="", help="folder for probe.json and probe.md")
    parser.add_argument("--name", default="", help="name of the result in the table (default: from the checkpoint's path)")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU when there is one)")
    common.add_override_arguments(parser)


class _Images(Dataset):
    """(image (3, S, S) uint8, label number), or the message of an image that cannot be used."""

    def __init__(self, images, classes: dict, transform):
        self.images, self.classes, self.transform = images, classes, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        from ofaseg.data import codec, transforms

        label = self.images.labels[i]
        if label not in self.classes:
            return f"{self.images.location(i)}: the class {label!r} is not among those of the training split"
        try:
            image = codec.decode_image(self.images.read(i), self.images.location(i))
        except (OSError, ValueError) as error:
            return str(error)
        return transforms.to_tensors(self.transform({"image": image}, None))["image"], self.classes[label]


def run(args) -> int:
    from ofaseg.checkpoints import load_dual_encoder
    from ofaseg.data.image_text_transforms import ImageTextEvaluation
    from ofaseg.data.labelled_images import open_labelled
    from ofaseg.models.simseg import SimSeg

    lr = RATES[args.optimizer] if args.lr is None else args.lr
    if min(args.epochs, args.encode_batch_size) < 1 or args.batch_size < 0 or lr <= 0:
        raise ValueError("--epochs and --encode-batch-size are at least 1, --lr is above 0, --batch-size is not negative")
    start, device = time.perf_counter(), common.choose_device(args.device)
    sets = [open_labelled(args.data, name, args.image_column, args.label_column) for name in (args.train_split, args.split)]
    classes = {label: k for k, label in enumerate(sorted(set(sets[0].labels)))}
    model, task = load_dual_encoder(args.checkpoint, device, common.parse_overrides(args.override))
    if args.features != "mean" and not isinstance(model, SimSeg):
        raise ValueError(f"--features {args.features} is of SimSeg alone; for this model give --features mean")
    size = args.size or task.cfg.patch_image_size
    if size % model.grid_stride:
        raise ValueError(f"--size {size}: give a multiple of the patch, {model.grid_stride} pixels")
    transform = ImageTextEvaluation(size * 256 // 224, size)  # of the published probe
    bad_rows: list[str] = []
    (train, train_labels), (test, test_labels) = (encode(model, task, _Images(s, classes, transform), args, device, bad_rows) for s in sets)
    train, test = linear_probe.standardise(train, test)
    batch = args.batch_size or max(1, min(PUBLISHED_BATCH, len(train) // LEAST_STEPS))
    with tqdm(total=args.epochs, unit="epoch", disable=None) as bar:

        def on_epoch(epoch: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()

        rule = partial(_optimizer, args.optimizer, lr)
        classifier = linear_probe.train_classifier(train, train_labels, len(classes), rule, lr, args.epochs, batch, args.seed, on_epoch)
    scores = linear_probe.accuracies(classifier, test, test_labels)
    counts = {"train_images": len(train), "images": len(test), "classes": len(classes), "bad_rows": bad_rows}
    settings = {key: getattr(args, key) for key in ("features", "optimizer", "epochs", "seed")}
    settings |= {"lr": lr, "size": size, "batch_size": batch}
    _report(args, scores | counts, settings, time.perf_counter() - start)
    return 0


def _optimizer(name: str, lr: float, parameters: list) -> torch.optim.Optimizer:
    from ofaseg.optim.lars import LARS

    return LARS(parameters, lr) if name == "lars" else torch.optim.SGD(parameters, lr, momentum=0.9)


@cast_weights_once()
def encode(model, task, images: _Images, args, device, bad_rows: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(features (N, D) float32, labels (N,)) on `device`; messages of images left out are added to `bad_rows`.

    Raises:
        ValueError: no image can be used.
    """
    from ofaseg.models.layers.pooling import topk_mean

    features, labels = [], []
    loader = DataLoader(images, args.encode_batch_size, collate_fn=list, num_workers=args.num_workers)
    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for samples in loader:
            bar.update(len(samples))
            for message in (sample for sample in samples if isinstance(sample, str)):
                logger.warning("left out: %s", message)
                bad_rows.append(message)
            good = [sample for sample in samples if not isinstance(sample, str)]
            if not good:
                continue
            photos = torch.stack([image for image, _ in good]).to(device, non_blocking=True)
            with torch.no_grad(), task.autocast(device):
                if args.features == "cls":
                    pooled = model.image_encoder(model.normalised(photos))[:, 0]
                else:
                    tokens, projected = model.patches(photos)
                    pooled = tokens.float().mean(1) if args.features == "mean" else topk_mean(projected, model.config.image_topk)
            features.append(pooled.float())
            labels += [label for _, label in good]
    if not features:
        raise ValueError("no image can be used" + (f"; the first problem: {bad_rows[0]}" if bad_rows else ""))
    return torch.cat(features), torch.tensor(labels, device=device)


def _report(args, scores: dict, settings: dict, seconds: float) -> None:
    name = args.name or default_name(args.checkpoint)
    row = [name, report.percent(scores["top1"]), report.percent(scores["top5"]), str(scores["images"]), str(scores["classes"])]
    table = "| | top-1 | top-5 | images | classes |\n|---|---:|---:|---:|---:|\n| " + " | ".join(row) + " |\n"
    print(table)
    left_out = f"; {len(scores['bad_rows'])} images left out" if scores["bad_rows"] else ""
    print(f"learned from {scores['train_images']} images in {seconds:.1f} s{left_out}")
    if args.out:
        about = {"name": name, "checkpoint": str(args.checkpoint), "data": str(args.data), "split": args.split, "seconds": seconds}
        report.write_json(Path(args.out) / "probe.json", about | scores | settings)
        report.write_text(Path(args.out) / "probe.md", table)

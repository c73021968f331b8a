"""Rows per second from shards to tensors, ours against the published way; run as `python -m tools.benchmark_data '{"rows": 60}'`.

The published way is a base64 TSV of PNG pictures whose target comes from a code table indexed with a Python list of one id
per pixel. Ours reads the same TSV, and TSV and Parquet shards of JPEG pictures. Nobody
augments: every path scales the short side to 512, crops 512 x 512 and hands over tensors. One process, one thread of work.
"""

import base64
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image

from ofaseg.data import codec, transforms
from ofaseg.data.seq2seq_dataset import ArtificialImageDataset, Seq2SeqSegmentationDataset
from ofaseg.data.shards import ShardReader, ShardWriter
from ofaseg.data.synthetic import ArtificialImageSampler
from ofaseg.vocabulary import ClassVocabulary
from tools.benchmark_cases import drawn_photo

SIDE, CLASSES, SEG_OFFSET = 512, 15, 59457
PHOTO_SIZE = (512, 683)


def write_shards(root: Path, rows: int) -> ClassVocabulary:
    """Folders png-tsv, jpeg-tsv and jpeg-parquet below `root` with the same `rows` drawn photos and label maps."""
    vocabulary = ClassVocabulary(tuple(f"class {k}" for k in range(CLASSES)), label_offset=1, ignore_label=0)
    kinds = (("png-tsv", "png", "tsv"), ("jpeg-tsv", "jpeg", "tsv"), ("jpeg-parquet", "jpeg", "parquet"))
    columns = ("image", "label_map", "id")
    writers = {name: ShardWriter(root / name, "train", vocabulary, columns, format=kind) for name, _, kind in kinds}
    for i in range(rows):
        photo = drawn_photo(*PHOTO_SIZE, seed=i).permute(1, 2, 0).numpy()
        layout = np.random.default_rng(i).integers(-1, CLASSES, (12, 16), dtype=np.int32)
        labels = cv2.resize(layout, PHOTO_SIZE[::-1], interpolation=cv2.INTER_NEAREST)
        row = {"id": f"{i:06d}", "label_map": codec.encode_label_map(labels, vocabulary)}
        for name, image_format, _ in kinds:
            writers[name].write(row | {"image": codec.encode_image(photo, image_format)})
    for writer in writers.values():
        writer.close()
    return vocabulary


class PublishedRows:
    """The published reader and dataset: rows of `path` (base64 PNG image and label map) to tensors."""

    def __init__(self, path: Path):
        self.file = path.open()
        self.offsets = [0]
        while self.file.readline():
            self.offsets.append(self.file.tell())
        self.codes = torch.arange(SEG_OFFSET, SEG_OFFSET + CLASSES + 1)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> dict:
        """image (3, 512, 512) float32, target codes (512 * 512,) and on the patch grid (32 * 32,)."""
        self.file.seek(self.offsets[i])
        fields = self.file.readline().rstrip("\n").split("\t")
        image, labels = (np.asarray(Image.open(io.BytesIO(base64.urlsafe_b64decode(text)))) for text in fields[:2])
        labels = labels.copy()
        labels[labels == 0] = 255
        labels = labels - 1
        labels[labels == 254] = CLASSES
        scale = SIDE / min(image.shape[:2])
        size = int(image.shape[1] * scale + 0.5), int(image.shape[0] * scale + 0.5)
        image = cv2.resize(image[:, :, ::-1], size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        top, left = np.random.randint(image.shape[0] - SIDE + 1), np.random.randint(image.shape[1] - SIDE + 1)
        image, labels = (part[top : top + SIDE, left : left + SIDE] for part in (image, labels))
        tensor = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float().div(255)
        tensor = (tensor - 0.5) / 0.5
        return {
            "image": tensor.contiguous(),
            "target": self.codes[labels.flatten().tolist()],
            "low_target": self.codes[labels[::16, ::16].flatten().tolist()],
        }


def crop_transform(sample: dict, rng: np.random.Generator) -> dict:
    """Short side to 512, then a square crop."""
    return transforms.random_crop(transforms.resize_short_side(sample, SIDE, 4 * SIDE), rng, SIDE, cat_max_ratio=1.0)


def our_rows(folder: Path, vocabulary: ClassVocabulary) -> Seq2SeqSegmentationDataset:
    """Our training dataset of the shards in `folder`, without augmentation."""
    reader = ShardReader.for_split(folder, "train")
    return Seq2SeqSegmentationDataset(reader, vocabulary, crop_transform, training=True, source_tokens=torch.zeros(36, dtype=torch.long))


def image_free_samples(rows: int) -> ArtificialImageDataset:
    """What image-free training reads instead of rows."""
    grid = SIDE // 16
    sampler = ArtificialImageSampler(CLASSES, (grid, grid), (SIDE, SIDE), 1, grid, seed=1)
    return ArtificialImageDataset(sampler, rows, torch.zeros(36, dtype=torch.long))


def check_rows(published: PublishedRows, ours: Seq2SeqSegmentationDataset) -> None:
    """Raises AssertionError unless both paths make the same picture and labels of the first row (for the same crop)."""
    theirs, sample = published[0], ours.load(0)
    full = codec.decode_image(ours.reader[0]["image"])
    image, target = sample["image"].float() / 127.5 - 1, theirs["target"].view(SIDE, SIDE) - SEG_OFFSET
    wide = torch.from_numpy(full.copy()).permute(2, 0, 1).float() / 127.5 - 1
    labels = torch.where(sample["label_map"] < 0, CLASSES, sample["label_map"])
    ours_at, theirs_at = (_column_of(part, wide) for part in (image, theirs["image"]))
    first, last = max(ours_at, theirs_at), min(ours_at, theirs_at) + SIDE
    same = torch.equal(labels[:, first - ours_at : last - ours_at], target[:, first - theirs_at : last - theirs_at])
    assert same, "the two paths read different label maps"


def _column_of(crop: torch.Tensor, image: torch.Tensor) -> int:
    """Where the crop (3, S, S) was cut out of the image (3, S, W). Raises AssertionError when it was not."""
    for column in range(image.shape[2] - SIDE + 1):
        if torch.allclose(crop, image[:, :, column : column + SIDE], atol=1e-5):
            return column
    raise AssertionError("the two paths decode different pictures")


def rates(rows: int, rounds: int) -> dict[str, float]:
    """Rows per second of every source, medians over `rounds` passes that take turns."""
    with tempfile.TemporaryDirectory(prefix="ofaseg-benchmark-") as folder:
        root = Path(folder)
        vocabulary = write_shards(root, rows)
        sources = {
            "published way: TSV of PNG": PublishedRows(next((root / "png-tsv").glob("*.tsv"))),
            "ours: the same TSV of PNG": our_rows(root / "png-tsv", vocabulary),
            "ours: TSV of JPEG": our_rows(root / "jpeg-tsv", vocabulary),
            "ours: Parquet of JPEG": our_rows(root / "jpeg-parquet", vocabulary),
            "ours: image-free samples (no row is read)": image_free_samples(rows),
        }
        check_rows(sources["published way: TSV of PNG"], sources["ours: the same TSV of PNG"])
        measured = {name: [] for name in sources}
        for _ in range(rounds + 1):  # the first one warms up
            for name, source in sources.items():
                start = time.perf_counter()
                for i in range(len(source)):
                    source[i]
                measured[name].append(rows / (time.perf_counter() - start))
    return {name: median(values[1:]) for name, values in measured.items()}


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG, and Pillow logs every chunk
    request = json.loads(sys.argv[1])
    print(json.dumps({"rates": rates(request["rows"], request["repeats"])}))

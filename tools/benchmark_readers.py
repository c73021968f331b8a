"""The ways from stored rows to training tensors that `tools/benchmark_data.py` compares, over the same photos.

Every way scales a photo so that 512 pixels fit, crops 512 x 512 and hands over an image and a label map; "augmented" adds
random scale, the varied-crop rule, flip and colour. The plain way does it with Pillow and NumPy, as many training scripts do.
"""

import base64
import io
import tarfile
from pathlib import Path

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
from tools.data_pack import data_pack

SIDE, SEG_OFFSET = 512, 59457
PHOTO_SIZE = (480, 640)
_DRAWN_CLASSES = 15
_COLUMNS = ("image", "label_map", "id")


def photos(count: int) -> tuple[list[dict], ClassVocabulary, str]:
    """`count` rows of 640x480 JPEG and PNG label map, their vocabulary, and what they are: COCO photos, or drawn ones."""
    pack = data_pack()
    if pack is None:
        vocabulary = _vocabulary(f"class {k}" for k in range(_DRAWN_CLASSES))
        return [_drawn_row(i, vocabulary) for i in range(count)], vocabulary, "drawn photos (the real-data pack is absent)"
    root = pack / "coco_mini"
    rows = []
    for photo in sorted(root.glob("*2017/*.jpg")):
        image = photo.read_bytes()
        if codec.image_size(image) == PHOTO_SIZE:
            label_map = (root / "semseg80" / photo.parent.name / f"{photo.stem}.png").read_bytes()
            rows.append({"id": f"{photo.stem}", "image": image, "label_map": label_map})
    vocabulary = _vocabulary((root / "classes.txt").read_text(encoding="utf-8").split("\n"))
    text = f"{min(count, len(rows))} COCO photos with masks of 80 classes"
    return [rows[i % len(rows)] | {"id": f"{i:06d}"} for i in range(count)], vocabulary, text


def _vocabulary(names) -> ClassVocabulary:
    return ClassVocabulary(tuple(name for name in names if name), label_offset=1, ignore_label=0)


def _drawn_row(i: int, vocabulary: ClassVocabulary) -> dict:
    photo = drawn_photo(*PHOTO_SIZE, seed=i).permute(1, 2, 0).numpy()
    layout = np.random.default_rng(i).integers(-1, len(vocabulary), (12, 16), dtype=np.int32)
    labels = cv2.resize(layout, PHOTO_SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    return {"id": f"{i:06d}", "image": codec.encode_image(photo, "jpeg"), "label_map": codec.encode_label_map(labels, vocabulary)}


def write_shards(root: Path, rows: list[dict], vocabulary: ClassVocabulary) -> None:
    """Folders png-tsv, jpeg-tsv and jpeg-parquet below `root` with the same rows, and jpeg.tar with them as WebDataset keeps them."""
    kinds = {"png-tsv": "tsv", "jpeg-tsv": "tsv", "jpeg-parquet": "parquet"}
    writers = {name: ShardWriter(root / name, "train", vocabulary, _COLUMNS, format=kind) for name, kind in kinds.items()}
    with tarfile.open(root / "jpeg.tar", "w") as tar:
        for row in rows:
            lossless = row | {"image": codec.encode_image(codec.decode_image(row["image"]))}
            for name, writer in writers.items():
                writer.write(lossless if name == "png-tsv" else row)
            for column, suffix in (("image", "jpg"), ("label_map", "png")):
                entry = tarfile.TarInfo(f"{row['id']}.{suffix}")
                entry.size = len(row[column])
                tar.addfile(entry, io.BytesIO(row[column]))
    for writer in writers.values():
        writer.close()


class TsvLines:
    """Base64 fields of a TSV by row, read as the published code reads them."""

    def __init__(self, path: Path):
        self.file = path.open()
        self.offsets = [0]
        while self.file.readline():
            self.offsets.append(self.file.tell())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pictures(self, i: int) -> list[Image.Image]:
        """Photo and label map of row `i`, not yet decoded."""
        self.file.seek(self.offsets[i])
        fields = self.file.readline().rstrip("\n").split("\t")
        return [Image.open(io.BytesIO(base64.urlsafe_b64decode(text))) for text in fields[:2]]


class PublishedRows:
    """The published dataset over a TSV of PNG: its target comes from a code table indexed with a list of one id per pixel."""

    def __init__(self, path: Path, num_classes: int):
        self.lines, self.num_classes = TsvLines(path), num_classes
        self.codes = torch.arange(SEG_OFFSET, SEG_OFFSET + num_classes + 1)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> dict:
        """image (3, 512, 512) float32, target codes (512 * 512,) and on the patch grid (32 * 32,)."""
        image, labels = map(np.asarray, self.lines.pictures(i))
        labels = labels.copy()
        labels[labels == 0] = 255
        labels = labels - 1
        labels[labels == 254] = self.num_classes
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


class PlainRows:
    """The plain way: standard-library base64, Pillow decoding and resizing, NumPy normalisation."""

    def __init__(self, path: Path, augment: bool):
        self.lines, self.augment = TsvLines(path), augment

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> dict:
        return plain_tensors(*self.lines.pictures(i), np.random.default_rng(i), self.augment)


class WebDatasetRows:
    """The same photos through WebDataset, in the order of the tar file, then the plain way."""

    def __init__(self, path: Path, count: int, augment: bool):
        import webdataset

        self.rows = webdataset.WebDataset(str(path), shardshuffle=False).decode("pil").to_tuple("jpg", "png")
        self.count, self.augment = count, augment

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for i, (photo, labels) in enumerate(self.rows):
            # its "pil" decoder makes every picture RGB, label maps too
            yield plain_tensors(photo, labels.getchannel(0), np.random.default_rng(i), self.augment)


class HuggingFaceRows:
    """The same Parquet file through Hugging Face `datasets`, then the plain way."""

    def __init__(self, folder: Path, cache: Path, augment: bool):
        import datasets

        datasets.disable_progress_bars()
        files = [str(path) for path in sorted(folder.glob("*.parquet"))]
        self.rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(cache))["train"]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        row = self.rows[i]
        return plain_tensors(row["image"], row["label_map"], np.random.default_rng(i), self.augment)


def plain_tensors(photo: Image.Image, labels: Image.Image, rng: np.random.Generator, augment: bool) -> dict:
    """image (3, 512, 512) float32 normalised on the host, label_map (512, 512) long, by Pillow and NumPy."""
    short = max(SIDE, int(SIDE * (rng.random() * 1.5 + 0.5))) if augment else SIDE
    scale = short / min(photo.size)
    size = tuple(max(SIDE, int(side * scale + 0.5)) for side in photo.size)
    image = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    classes = np.asarray(labels.resize(size, Image.Resampling.NEAREST))
    for _ in range(11 if augment else 1):
        top, left = (int(rng.integers(0, whole - SIDE + 1)) for whole in classes.shape)
        window = slice(top, top + SIDE), slice(left, left + SIDE)
        counts = np.unique(classes[window], return_counts=True)[1] if augment else np.ones(2)
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    image, classes = image[window], classes[window]
    if augment:
        image, classes = (image[:, ::-1], classes[:, ::-1]) if rng.random() < 0.5 else (image, classes)
        image = _plain_colour(image, rng)
    image = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    classes = np.where(classes == 255, 0, classes).astype(np.int64) - 1
    return {"image": torch.from_numpy(np.ascontiguousarray(image)), "label_map": torch.from_numpy(classes)}


def _plain_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each every other time, in float32 as mmsegmentation computes them."""

    def change(values, factor, offset):
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        image = change(image, 1, rng.uniform(-32, 32))
    if rng.random() < 0.5:
        image = change(image, rng.uniform(0.5, 1.5), 0)
    for channel in (1, 0):
        if rng.random() < 0.5:
            hsv = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
            values = hsv[..., channel]
            hsv[..., channel] = change(values, rng.uniform(0.5, 1.5), 0) if channel else values + np.uint8(rng.integers(0, 26))
            image = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return image


def crop_transform(sample: dict, rng: np.random.Generator) -> dict:
    """Short side to 512, then a square crop."""
    return transforms.random_crop(transforms.resize_short_side(sample, SIDE, 4 * SIDE), rng, SIDE, cat_max_ratio=1.0)


def training_transform(sample: dict, rng: np.random.Generator) -> dict:
    """What supervised training runs."""
    return transforms.random_scale_crop_flip(sample, rng, size=SIDE, long=4 * SIDE)


def our_rows(folder: Path, vocabulary: ClassVocabulary, augment: bool) -> Seq2SeqSegmentationDataset:
    """Our training dataset of the shards in `folder`."""
    reader, transform = ShardReader.for_split(folder, "train"), training_transform if augment else crop_transform
    source = torch.zeros(36, dtype=torch.long)
    return Seq2SeqSegmentationDataset(reader, vocabulary, transform, training=True, on_bad_sample="raise", source_tokens=source)


def image_free_samples(rows: int, num_classes: int) -> ArtificialImageDataset:
    """What image-free training reads instead of rows."""
    grid = SIDE // 16
    sampler = ArtificialImageSampler(num_classes, (grid, grid), (SIDE, SIDE), 1, grid, seed=1)
    return ArtificialImageDataset(sampler, rows, torch.zeros(36, dtype=torch.long))

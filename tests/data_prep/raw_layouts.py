"""Tiny raw copies of datasets in the layouts that converters expect."""

import json

import numpy as np
from PIL import Image

from ofaseg.data.shards import ShardWriter
from tests.data.sample_rows import VOCABULARY, make_row

CLASSES = ("sky", "tall grass", "car")


def write_photo(path, height: int, width: int, seed: int = 0) -> None:
    """A photo of noise in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)


def write_values(path, values) -> np.ndarray:
    """A greyscale PNG of the values; returns them as an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values


def write_pair(photo, label_map, values, seed: int = 0) -> np.ndarray:
    """A photo and a label map of one size."""
    values = write_values(label_map, values)
    write_photo(photo, *values.shape, seed)
    return values


def row_of(values, height: int = 4) -> np.ndarray:
    """(height, len(values)): the same values in each line."""
    return np.tile(np.asarray(values, dtype=np.uint8), (height, 1))


def raw_coco_stuff(root):
    for k, stem in enumerate(("000000000009", "000000000025")):
        folders = [root / kind / "train2017" for kind in ("images", "annotations")]
        write_pair(folders[0] / f"{stem}.jpg", folders[1] / f"{stem}.png", row_of([0, 12, 30, 113, 181, 255, k]), k)
    return ["--root", str(root)]


def write_lines(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def raw_pascal_voc(root):
    folder, stems = root / "VOCdevkit" / "VOC2012", ("2007_000032", "2007_000039")
    for k, stem in enumerate(stems):
        write_pair(folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png", row_of([0, 1, 20, 255, 5 + k]), k)
    write_photo(folder / "JPEGImages" / "2007_000027.jpg", 4, 5)  # most photos of the release have no label map
    write_lines(folder / "ImageSets" / "Segmentation" / "train.txt", stems)
    return ["--root", str(root)]


def raw_pascal5i(root):
    folder = root / "VOCdevkit" / "VOC2012"
    for k, stem in enumerate(("2007_000032", "2008_000003", "2007_000033")):
        photo, labels = folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClassAug" / f"{stem}.png"
        write_pair(photo, labels, row_of([0, 1, 20, 255, 5 + k]), k)
    write_lines(folder / "ImageSets" / "Segmentation" / "val.txt", ["2007_000033"])
    return ["--root", str(root)]


def raw_coco20i(root):
    for k, number in enumerate((9, 25)):
        stem = f"COCO_train2014_{number:012d}"
        write_pair(root / "train2014" / f"{stem}.jpg", root / "annotations" / "train2014" / f"{stem}.png", row_of([0, 1, 80, 20 + k]), k)
    write_photo(root / "train2014" / "COCO_train2014_000000000030.jpg", 4, 5)  # a photo without an object has no mask
    return ["--root", str(root)]


def raw_fss1000(root):
    for k, name in enumerate(("whale", "ab_wheel", "zebra", "abacus")):
        for number in (1, 2, 10):
            write_pair(root / name / f"{number}.jpg", root / name / f"{number}.png", row_of([0, 127, 128, 255]), 10 * k + number)
    for name, classes in {"trn": ["whale", "ab_wheel"], "val": ["zebra"], "test": ["abacus"]}.items():
        write_lines(root / f"{name}.txt", classes)
    return ["--root", str(root)]


def raw_mosaic4(root):
    """Four classes of two photos each in every list's stead; odd sizes, so that parts are resized."""
    for k, name in enumerate(MOSAIC_CLASSES):
        for number in (1, 2):
            write_pair(root / name / f"{number}.jpg", root / name / f"{number}.png", row_of([255, 255, 0, 0, 0], 7), 10 * k + number)
    for name, classes in {"trn": MOSAIC_CLASSES, "val": [], "test": []}.items():
        write_lines(root / f"{name}.txt", classes)
    return ["--root", str(root), "--side", "6", "--num", "3"]


MOSAIC_CLASSES = ["ab_wheel", "abacus", "whale", "zebra"]


def raw_pascal_context(root):
    folder, stems = root / "VOCdevkit" / "VOC2010", ("2008_000002", "2008_000003")
    for k, stem in enumerate(stems):
        label_map = folder / "SegmentationClassContext" / f"{stem}.png"
        write_pair(folder / "JPEGImages" / f"{stem}.jpg", label_map, row_of([0, 1, 59, 33 + k]), k)
    write_lines(folder / "ImageSets" / "SegmentationContext" / "train.txt", stems)
    return ["--root", str(root)]


def raw_coco_captions(root):
    annotations = []
    for k, image_id in enumerate((9, 25)):
        write_photo(root / "train2017" / f"{image_id:012d}.jpg", 5, 8, k)
        annotations += [{"image_id": image_id, "id": 10 * k + j, "caption": f"picture {k},\n number  {j}."} for j in range(2)]
    images = [{"id": image_id, "file_name": f"{image_id:012d}.jpg"} for image_id in (9, 25)]
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return ["--root", str(root)]


def raw_flickr30k(root):
    lines = []
    for k, name in enumerate(("1000092795.jpg", "10002456.jpg")):
        write_photo(root / "flickr30k-images" / name, 5, 8, k)
        lines += [f"{name}#{j}\tTwo men , number {j} ." for j in range(2)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return ["--root", str(root)]


def raw_ade20k(root):
    for k in range(2):
        folders = [root / kind / "training" for kind in ("images", "annotations")]
        stem = f"ADE_train_{k:08d}"
        write_pair(folders[0] / f"{stem}.jpg", folders[1] / f"{stem}.png", row_of([0, 1, 150, 20 + k, 3]), k)
    return ["--root", str(root)]


def raw_cityscapes(root):
    for k, city in enumerate(("aachen", "bremen")):
        stem = f"{city}_000000_{k:06d}"
        photo = root / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png"
        folder = root / "gtFine" / "train" / city
        write_pair(photo, folder / f"{stem}_gtFine_labelIds.png", row_of([0, 7, 33, 4, 11 + k, 26]), k)
        write_values(folder / f"{stem}_gtFine_instanceIds.png", row_of([0, 7, 33, 4, 11, 26]))
    return ["--root", str(root)]


def raw_folder(root):
    for k, stem in enumerate(("a", "b", "sub/c")):
        write_pair(root / "images" / "train" / f"{stem}.jpg", root / "labels" / "train" / f"{stem}.png", row_of([0, 1, 2, 255, k]), k)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return ["--root", str(root)]


def hf_dataset(root, num: int = 3, offset: int = 0, seed: int = 0):
    """A `datasets.Dataset` with photos, label maps, ids and a list of ClassLabels; its files are written below `root`."""
    import datasets

    columns = {"image": [], "annotation": [], "image_id": [], "objects": []}
    for k in range(num):
        write_pair(root / f"{k}.jpg", root / f"{k}.png", row_of([0, 1, 2, 255]) + (row_of([offset] * 3 + [0])), seed + k)
        columns["image"].append({"bytes": (root / f"{k}.jpg").read_bytes(), "path": None})
        columns["annotation"].append({"bytes": (root / f"{k}.png").read_bytes(), "path": None})
        columns["image_id"].append(10 + k)
        columns["objects"].append([k % 3])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "annotation": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "objects": datasets.Sequence(datasets.ClassLabel(names=list(CLASSES))),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def raw_hf(root):
    hf_dataset(root / "files").save_to_disk(str(root / "saved"))
    return ["--root", str(root / "saved")]


def write_shards(root, format: str = "tsv", num: int = 5, split: str = "train", columns=None):
    """Shards with every column, or those given."""
    rows = [make_row(k) for k in range(num)]
    with ShardWriter(root, split, VOCABULARY, columns or list(rows[0]), format, rows_per_shard=3) as writer:
        for row in rows:
            writer.write(row if columns is None else {name: row[name] for name in columns})
    return root


def raw_shards(root):
    # label maps of rows 1..3 are there, which is what the checks of every converter want
    rows = [make_row(k) for k in (1, 2, 3)]
    with ShardWriter(root, "train", VOCABULARY, list(rows[0]), "parquet") as writer:
        for row in rows:
            writer.write(row)
    return ["--root", str(root)]


def raw_regions(root):
    """Shards with boxes: two in row 1, one of them too small for `--min-side 2`, and none in row 3."""
    rows = []
    for k in (1, 2, 3):
        boxes = [{"box": [1.0, 0.5, 4.0 + k, 4.0], "text": "a car", "class_id": 2}, {"box": [0, 0, 1, 1], "text": "dot", "class_id": None}]
        rows.append(make_row(k) | {"boxes": boxes[: 3 - k] or []})
    with ShardWriter(root, "train", VOCABULARY, list(rows[0]), "parquet") as writer:
        for row in rows:
            writer.write(row)
    return ["--root", str(root), "--min-side", "2"]


RAW = {
    "ade20k": raw_ade20k,
    "cityscapes": raw_cityscapes,
    "coco20i": raw_coco20i,
    "coco_captions": raw_coco_captions,
    "coco_object": raw_coco_stuff,
    "coco_stuff": raw_coco_stuff,
    "coco_unseen": raw_coco_stuff,
    "flickr30k": raw_flickr30k,
    "folder": raw_folder,
    "fss1000": raw_fss1000,
    "hf": raw_hf,
    "mosaic4": raw_mosaic4,
    "pascal5i": raw_pascal5i,
    "pascal_context": raw_pascal_context,
    "pascal_voc": raw_pascal_voc,
    "regions": raw_regions,
    "shards": raw_shards,
    "voc_zero_shot": raw_pascal_voc,
}

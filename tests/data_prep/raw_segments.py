"""Tiny raw copies of datasets with segments and objects."""

import json

import numpy as np
from PIL import Image

from data_prep.paired import read_class_names
from ofaseg.utils.run_lengths import text_of_mask
from tests.data_prep.raw_layouts import row_of, write_pair, write_photo, write_values

H, W = 6, 9
CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "grass", "isthing": 0},
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 200, "name": "sky", "isthing": 0},
]


def write_ids(path, ids) -> None:
    """An RGB PNG of segment ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)


def segment_map(k: int = 0) -> np.ndarray:
    """(H, W): sky 70000 above, a cat 5 and a crowd of dogs 300 on it, grass 16000000 below, a column of no segment."""
    ids = np.full((H, W), 70000, dtype=np.int32)
    ids[4:] = 16_000_000
    ids[1:3, 1 + k : 4 + k] = 5
    ids[2:5, 6:8] = 300
    ids[:, 8] = 0
    return ids


def segments_info(ids: np.ndarray, categories=((70000, 200), (5, 3), (300, 9), (16_000_000, 7))) -> list[dict]:
    infos = []
    for segment_id, category in categories:
        ys, xs = np.nonzero(ids == segment_id)
        bbox = [int(v) for v in (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())]
        infos.append({"id": segment_id, "category_id": category, "iscrowd": int(segment_id == 300), "bbox": bbox, "area": len(ys)})
    return infos


def object_record(number: int, image_id: int, category: int, mask: np.ndarray, **more) -> dict:
    ys, xs = np.nonzero(mask)
    bbox = [float(v) for v in (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())]
    segmentation = {"size": [H, W], "counts": text_of_mask(mask)}
    record = {"id": number, "image_id": image_id, "category_id": category, "segmentation": segmentation, "area": float(mask.sum())}
    return record | {"bbox": bbox, "iscrowd": 0} | more


def rectangle(y0, x0, y1, x1) -> np.ndarray:
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def object_records(image_id: int, cat: int = 3, dog: int = 9) -> list[dict]:
    """A dog over a cat, which overlap, and a crowd of cats."""
    return [
        object_record(10 * image_id + 1, image_id, dog, rectangle(1, 2, 4, 5), area=8.5),
        object_record(10 * image_id + 2, image_id, cat, rectangle(0, 0, 6, 4)),
        object_record(10 * image_id + 3, image_id, cat, rectangle(3, 5, 6, 9), iscrowd=1),
    ]


def panoptic_file(ids, maps) -> dict:
    annotations = [
        {"image_id": i, "file_name": f"{i:012d}.png", "segments_info": segments_info(ids_of)} for i, ids_of in zip(ids, maps, strict=True)
    ]
    return {"images": images(ids), "annotations": annotations, "categories": CATEGORIES}


def images(ids) -> list[dict]:
    return [{"id": i, "file_name": f"{i:012d}.jpg", "height": H, "width": W} for i in ids]


def write_coco_format(root, split: str = "train", ids=(12, 31), instances: bool = True) -> None:
    """Photos with segments and, with `instances`, objects."""
    maps = [segment_map(k % 2) for k in range(len(ids))]
    for k, (i, drawn) in enumerate(zip(ids, maps)):
        write_photo(root / "images" / split / f"{i:012d}.jpg", H, W, k)
        write_ids(root / "annotations" / f"panoptic_{split}" / f"{i:012d}.png", drawn)
    write_json(root / "annotations" / f"panoptic_{split}.json", panoptic_file(ids, maps))
    if instances:
        things = [category for category in CATEGORIES if category["isthing"]]
        records = [record for i in ids for record in object_records(i)]
        write_json(root / "annotations" / f"instances_{split}.json", {"images": images(ids), "annotations": records, "categories": things})


def write_json(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change_json(path, change) -> None:
    """Applies `change` to the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def raw_coco_format(root):
    write_coco_format(root)
    return ["--root", str(root)]


def coco_categories() -> list[dict]:
    """The 133 categories with COCO's numbers for the names that tests use, and any for the others; not in the published order."""
    known = {"person": 1, "cat": 17, "dog": 18, "cow": 21, "grass-merged": 193, "sky-other-merged": 187, "road": 149, "river": 148}
    names, things = read_class_names("verbatim/coco_panoptic133"), read_class_names("coco_object81")[1:]
    numbers = (known.get(name, 1000 + k) for k, name in enumerate(names))
    return [{"id": number, "name": name, "isthing": int(name in things)} for number, name in zip(numbers, names)][::-1]


def raw_coco_panoptic(root):
    write_coco_format(root, "train2017", instances=False)
    numbers = {3: 17, 7: 193, 9: 21, 200: 187}

    def as_coco(content):
        content["categories"] = coco_categories()
        for record in content["annotations"]:
            for info in record["segments_info"]:
                info["category_id"] = numbers[info["category_id"]]

    change_json(root / "annotations" / "panoptic_train2017.json", as_coco)
    return ["--root", str(root)]


def raw_coco_instances(root):
    categories = [category for category in coco_categories() if category["isthing"]]
    for k, i in enumerate((12, 31)):
        write_photo(root / "train2017" / f"{i:012d}.jpg", H, W, k)
    records = [record for i in (12, 31) for record in object_records(i, cat=17, dog=21)]
    content = {"images": images((12, 31)), "annotations": records, "categories": categories}
    write_json(root / "annotations" / "instances_train2017.json", content)
    return ["--root", str(root)]


def raw_coco_zero_shot(root):
    """A pixel map with a cow (20), a cat (16), river (147), grass (123) and a window (180) below the segments of `raw_coco_panoptic`."""
    raw_coco_panoptic(root)
    for k, i in enumerate((12, 31)):
        values = row_of([20, 20, 16, 16, 147, 147, 123, 180, 255], H)
        write_values(root / "annotations" / "train2017" / f"{i:012d}.png", values + 0 * k)
    return ["--root", str(root), "--with-segments"]


def raw_ade20k_panoptic(root):
    for k in range(2):
        stem, folder = f"ADE_train_{k:08d}", "training"
        # wall, sky, grass, bed, window, other
        write_pair(
            root / "images" / folder / f"{stem}.jpg", root / "annotations" / folder / f"{stem}.png", row_of([1, 3, 10, 8, 9, 0], H), k
        )
        objects = np.zeros((H, 6, 3), dtype=np.uint8)
        objects[1:5, 3] = [1, 7 + k, 0]  # thing 1 is the bed
        objects[0:3, 4] = [2, 2, 0]  # thing 2 the window
        objects[2:5, 5] = [100, 3, 0]  # thing 100 the flag
        (root / "annotations_instance" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(objects).save(root / "annotations_instance" / folder / f"{stem}.png")
    return ["--root", str(root)]


RAW = {
    "ade20k_panoptic": raw_ade20k_panoptic,
    "coco_format": raw_coco_format,
    "coco_instances": raw_coco_instances,
    "coco_panoptic": raw_coco_panoptic,
    "coco_zero_shot": raw_coco_zero_shot,
}

"""Photos with captions in every format that is read, the same in each."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ofaseg.data import codec
from ofaseg.data.image_text_source import ImageTextColumns
from ofaseg.data.shards import ShardWriter

CAPTIONS = {
    4: ["a red square, small", 'with "quotes"\nand a line break', "naïve 猫\u2028 here"],
    9: ["green"],
    2: ["blue as the sea", "a second one"],
}


def photo(number: int) -> bytes:
    return codec.encode_image(np.full((4, 6, 3), 20 * number, np.uint8), "png")


def caption_rows():
    """(image id, caption id, caption) of every caption, those of an image not in a row."""
    rows = [(image_id, 10 * image_id + k, text) for image_id, texts in CAPTIONS.items() for k, text in enumerate(texts)]
    return [rows[0], rows[3], *rows[1:3], *rows[4:]]


EXPECTED = [(photo(k), tuple(CAPTIONS[k])) for k in (4, 9, 2)]


IDS = [(4, (40, 41, 42)), (9, (90,)), (2, (20, 21))]


def write_images(folder, numbers=CAPTIONS):
    folder.mkdir(parents=True, exist_ok=True)
    for k in numbers:
        (folder / f"{k}.png").write_bytes(photo(k))


def write_csv(path, rows, columns=("image", "caption", "image_id", "caption_id")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def write_anno(root, split="train", numbers=CAPTIONS, ids=True):
    """The official layout: <split>_anno.csv and a folder of its images."""
    write_images(root / split, numbers)
    columns = ("image", "caption", "image_id", "caption_id") if ids else ("image", "caption")
    rows = [(f"{image_id}.png", text, image_id, caption_id) for image_id, caption_id, text in caption_rows()]
    return write_csv(root / f"{split}_anno.csv", [row[: len(columns)] for row in rows], columns)


def write_official_parquet(path, extra=()):
    """Rows as in the retrieval sets; the image of an earlier row of an image is another one, for the last counts."""
    rows = [*caption_rows(), *extra]
    last = {image_id: k for k, (image_id, _, _) in enumerate(rows)}
    table = {
        "imbytes": [photo(abs(i)) if last[i] == k else photo(12) for k, (i, _, _) in enumerate(rows)],
        "caption": [text for _, _, text in rows],
        "image_id": [i for i, _, _ in rows],
        "id": [caption_id for _, caption_id, _ in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def write_shards(root, split="train", file_format="parquet"):
    with ShardWriter(root, split, None, ["image", "id", "captions"], file_format) as writer:
        for k, texts in CAPTIONS.items():
            writer.write({"id": str(k), "image": photo(k), "captions": texts})
    return root


def saved_dataset(path, as_dict=True):
    import datasets

    rows = [{"image": {"bytes": photo(k), "path": None}, "captions": texts} for k, texts in CAPTIONS.items()]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))})
    dataset = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict({"validation": dataset}) if as_dict else dataset).save_to_disk(str(path))
    return path


NAMED = ImageTextColumns("filepath", ("title",), "photo")

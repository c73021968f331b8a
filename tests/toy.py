"""Toy shards for tests: small coloured photos whose label map follows from the colours."""

import numpy as np
from PIL import Image

from ofaseg.data import codec
from ofaseg.data.shards import ShardWriter
from ofaseg.vocabulary import ClassVocabulary

CLASS_COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=np.uint8)
NAMES = ("red", "green", "blue")


def toy_label_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blocks of random classes, with an unlabelled border on the left."""
    blocks = rng.integers(0, len(NAMES), (3, 4))
    label_map = np.repeat(np.repeat(blocks, -(-height // 3), axis=0), -(-width // 4), axis=1)[:height, :width].astype(np.int32)
    label_map[:, :2] = -1
    return label_map


def toy_photo(rng: np.random.Generator, label_map: np.ndarray) -> np.ndarray:
    image = CLASS_COLOURS[np.maximum(label_map, 0)].astype(np.int64) + rng.integers(-20, 20, (*label_map.shape, 3))
    return image.clip(0, 255).astype(np.uint8)


def write_toy_shards(
    root, split: str, num: int, sizes=((32, 48),), seed: int = 0, file_format: str = "tsv", names=NAMES, captions: bool = False
) -> ClassVocabulary:
    """Writes `num` rows whose photo sizes cycle through `sizes` (height, width); returns their vocabulary.

    With `captions` each photo has two, which name its classes.
    """
    vocabulary = ClassVocabulary(tuple(names), source="toy")
    rng = np.random.default_rng(seed)
    columns = ["image", "label_map", "id", *(["captions"] if captions else [])]
    with ShardWriter(str(root), split, vocabulary, columns, format=file_format) as writer:
        for i in range(num):
            label_map = toy_label_map(rng, *sizes[i % len(sizes)])
            image = codec.encode_image(toy_photo(rng, label_map), "png")
            row = {"id": f"{split}{i}", "image": image, "label_map": codec.encode_label_map(label_map, vocabulary)}
            if captions:
                shown = " and ".join(names[k] for k in np.unique(label_map) if k >= 0)
                row["captions"] = [f"a photo of {shown}", f"{shown} blocks"]
            writer.write(row)
    return vocabulary


def write_toy_folder(root, count: int) -> None:
    """Photos with label maps (255 = no label) and class names, as a user would have them."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for k in range(count):
        label_map = toy_label_map(rng, 48, 64)
        Image.fromarray(toy_photo(rng, label_map)).save(root / "images" / f"photo {k}.jpg", quality=95)
        Image.fromarray(np.where(label_map < 0, 255, label_map).astype(np.uint8)).save(root / "labels" / f"photo {k}.png")


def write_words(folder, words) -> str:
    """A `dict.txt` of whole words for `--bpe-dir`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in words), encoding="utf-8")
    return str(folder)


PROMPT_WORDS = "what is the segmentation map of image? object: unknown".split()

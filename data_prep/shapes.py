"""The embedded default world: small drawn scenes with class names, captions, region boxes, label maps and segments.

Each scene is a square RGB picture: one or two ground textures (grass, sand, water) parted by a wavy line, usually a band of sky or
wall above them, and one to four objects with their own colour, size, texture, rotation and mirror, lit by one light. Everything
is drawn with implicit functions in numpy. A scene depends on (seed, split, index) alone; splits never share a random stream.
"""

import argparse
import io
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from data_prep.label_values import add_novel_argument, mark_novel
from data_prep.shapes_drawing import BACKGROUNDS, COLOURS, OBJECTS, SIDE, draw_background, draw_object, light
from data_prep.source import Source
from ofaseg.vocabulary import ClassVocabulary, default_palette

DEFAULT_COUNTS = {"train": 6000, "val": 400, "test": 400}
SPLIT_STREAMS = {"train": 0, "val": 1, "test": 2}
SPLITS = tuple(SPLIT_STREAMS)
NEEDS_ROOT = False
COLUMNS = ("image", "label_map", "id", "captions", "boxes", "segment_map", "segments")
CAPTIONS_PER_SCENE = 5
SMALL_RADIUS, BIG_RADIUS = 14.0, 18.5
"""Below / above these radii (pixels) a caption may say "small" / "big"."""
MIN_VISIBLE_PIXELS = 40
MIN_VISIBLE_SHARE = 0.5
CLASS_NAMES = tuple(BACKGROUNDS) + tuple(OBJECTS)
BACKGROUND_COLOURS = {
    "sky": (120, 190, 255),
    "grass": (60, 140, 50),
    "sand": (225, 200, 130),
    "water": (30, 80, 190),
    "wall": (165, 95, 75),
}
PALETTE = tuple(BACKGROUND_COLOURS[name] for name in BACKGROUNDS) + default_palette(len(CLASS_NAMES))[len(BACKGROUNDS) :]
"""Backgrounds in the colours people expect, objects in colours that stand apart."""


class Thing(NamedTuple):
    """One drawn object: what the captions may say about it, and where it lies."""

    kind: str
    colour: str
    radius: float
    mask: np.ndarray  # (SIDE, SIDE) bool, its visible pixels


class Scene(NamedTuple):
    """One drawn scene.

    Attributes:
        image: (SIDE, SIDE, 3) uint8 RGB.
        label_map: (SIDE, SIDE) int32 class ids; every pixel has a class.
        segment_map: (SIDE, SIDE) int32, ids 1.. of the segments (background regions of one class are one segment).
        things: the objects, in drawing order.
    """

    image: np.ndarray
    label_map: np.ndarray
    segment_map: np.ndarray
    things: list


def vocabulary() -> ClassVocabulary:
    """The class vocabulary: five backgrounds, then twelve object kinds."""
    return ClassVocabulary(
        names=CLASS_NAMES,
        palette=PALETTE,
        thing=(False,) * len(BACKGROUNDS) + (True,) * len(OBJECTS),
        source="shapes: drawn scenes of ofaseg",
    )


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random stream of one scene. Raises ValueError for an unknown split."""
    if split not in SPLIT_STREAMS:
        raise ValueError(f"shapes has no split {split!r}; choose one of {', '.join(SPLIT_STREAMS)}")
    return np.random.default_rng([int(seed), SPLIT_STREAMS[split], int(index)])


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws one scene; all randomness comes from `rng`."""
    image, label_map = draw_background(rng)
    owner = np.full((SIDE, SIDE), -1, dtype=np.int32)  # which object a pixel shows
    wanted = int(rng.integers(1, 5))
    drawn: list[tuple[str, str, float, int]] = []
    for _ in range(wanted * 3):
        if len(drawn) == wanted:
            break
        placed = draw_object(rng)
        if _fits(owner, placed.mask, [area for *_, area in drawn]):
            image[placed.mask] = placed.rgb[placed.mask]
            owner[placed.mask] = len(drawn)
            drawn.append((placed.kind, placed.colour, placed.radius, int(placed.mask.sum())))
    segment_map = np.zeros((SIDE, SIDE), dtype=np.int32)
    for number, class_id in enumerate(np.unique(label_map[owner < 0]), start=1):
        segment_map[(owner < 0) & (label_map == class_id)] = number
    things, first = [], int(segment_map.max()) + 1
    for k, (kind, colour, radius, _) in enumerate(drawn):
        mask = owner == k
        label_map[mask] = CLASS_NAMES.index(kind)
        segment_map[mask] = first + k
        things.append(Thing(kind, colour, radius, mask))
    return Scene(light(image, rng), label_map, segment_map, things)


def _fits(owner: np.ndarray, mask: np.ndarray, areas: list) -> bool:
    """Whether a new object is large enough and leaves half of every earlier object (full sizes `areas`) visible."""
    if mask.sum() < MIN_VISIBLE_PIXELS:
        return False
    kept = np.bincount(owner[(owner >= 0) & ~mask], minlength=len(areas))
    return all(kept[k] >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * area) for k, area in enumerate(areas))


def describe_thing(thing: Thing, rng: np.random.Generator, p_word: float = 0.5) -> str:
    """ "small red ball": the size (when it is remarkable) and the colour are each said with probability `p_word`."""
    words = []
    size = "small" if thing.radius < SMALL_RADIUS else "big" if thing.radius > BIG_RADIUS else ""
    if size and rng.random() < p_word:
        words.append(size)
    if rng.random() < p_word:
        words.append(thing.colour)
    return " ".join([*words, thing.kind])


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence such as "there is a small red ball and a car on the grass and the water under the sky".

    Each object is left out with probability 0.1, each background with 0.15, but never everything.
    """
    present = {CLASS_NAMES[k] for k in np.unique(scene.label_map)}
    things = [t for t in scene.things if rng.random() > 0.10] or scene.things[:1]
    objects = [f"a {describe_thing(t, rng)}" for t in (things[k] for k in rng.permutation(len(things)))]
    grounds = [name for name in ("grass", "sand", "water") if name in present and rng.random() > 0.15]
    grounds = [f"the {grounds[k]}" for k in rng.permutation(len(grounds))]
    text = str(rng.choice(["there is ", "a picture of ", ""])) + " and ".join(objects)
    if grounds:
        text += " on " + " and ".join(grounds)
    if "sky" in present and rng.random() > 0.15:
        text += " under the sky"
    if "wall" in present and rng.random() > 0.15:
        text += " in front of the wall"
    return text


def tight_box(mask: np.ndarray) -> list[float]:
    """[x0, y0, x1, y1] in pixels around the True pixels of `mask`, end exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def region_boxes(scene: Scene) -> tuple[list[dict], list[dict]]:
    """(boxes, segments) of a scene as the columns of a shard row hold them; a box's text is its class name."""
    boxes, segments = [], []
    for segment_id in range(1, int(scene.segment_map.max()) + 1):
        mask = scene.segment_map == segment_id
        class_id = int(scene.label_map[mask][0])
        box = tight_box(mask)
        boxes.append({"box": box, "text": CLASS_NAMES[class_id], "class_id": class_id})
        segments.append({"id": segment_id, "class_id": class_id, "is_crowd": False, "area": int(mask.sum()), "box": box})
    return boxes, segments


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a uint8 (H,W) or (H,W,3) array."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def make_row(seed: int, split: str, index: int) -> dict:
    """The shard row of one scene."""
    rng = scene_rng(seed, split, index)
    scene = draw_scene(rng)
    captions = [write_caption(scene, rng) for _ in range(CAPTIONS_PER_SCENE)]
    boxes, segments = region_boxes(scene)
    ids = scene.segment_map
    return {
        "image": encode_png(scene.image),
        "label_map": encode_png(scene.label_map.astype(np.uint8)),
        "id": f"{split}-{seed}-{index:06d}",
        "captions": captions,
        "boxes": boxes,
        "segment_map": encode_png(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)),
        "segments": segments,
    }


class ShapesSource(Source):
    """The scenes of one split.

    Args:
        split: train, val or test.
        num: number of scenes, at least 0; None for `DEFAULT_COUNTS[split]`.
        seed: the world's seed.
        novel: names of the classes to be marked as held out, by commas; captions and boxes speak of them all the same.

    Raises:
        ValueError: unknown split, or a negative number.
    """

    columns = COLUMNS

    def __init__(self, split: str, num: Optional[int] = None, seed: int = 1, novel: str = ""):
        if split not in SPLIT_STREAMS:
            raise ValueError(f"shapes has no split {split!r}; choose one of {', '.join(SPLIT_STREAMS)}")
        self.vocabulary = mark_novel(vocabulary(), novel)
        self.split = split
        self.num = DEFAULT_COUNTS[split] if num is None else int(num)
        self.seed = int(seed)
        if self.num < 0:
            raise ValueError(f"the number of scenes must not be negative, got {num}")

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: int) -> dict:
        return make_row(self.seed, self.split, i)

    def name(self, i: int) -> str:
        return f"scene {i} of {self.split}, seed {self.seed}"


def scene_counts(text: str) -> dict[str, int]:
    """Split -> number of scenes from "1000" (key "": every split) or "train=800,val=100". Raises argparse.ArgumentTypeError."""
    counts = {}
    for part in text.split(","):
        split, _, number = part.rpartition("=")
        if not number.strip().isdigit() or int(number) < 1:
            problem = f"{text!r}: {number!r} is not a number of samples of at least 1; write 1000, or train=800,val=100"
            raise argparse.ArgumentTypeError(problem)
        if split and split not in SPLIT_STREAMS:
            raise argparse.ArgumentTypeError(f"{text!r}: no split {split!r}; choose from {', '.join(SPLIT_STREAMS)}")
        counts[split] = int(number)
    return counts


def add_arguments(parser) -> None:
    """Options of this dataset."""
    parser.add_argument("--num", type=scene_counts, default={}, help="number of scenes, or per split: train=800,val=100")
    parser.add_argument("--seed", type=int, default=1, help="seed of the drawn world (default 1)")
    add_novel_argument(parser)


def open_split(root, split: str, args: argparse.Namespace) -> ShapesSource:
    """The scenes of a split; `root` is unused, the world is drawn. Raises ValueError for an unknown split."""
    return ShapesSource(split, args.num.get(split, args.num.get("")), args.seed, args.novel)


def caption_words() -> list[str]:
    """Every word that captions and region texts can hold, sorted: what a tokenizer for this world must know (its `dict.txt`)."""
    words = {"there", "is", "a", "picture", "of", "and", "on", "the", "under", "in", "front", "small", "big"}
    return sorted(words | set(COLOURS) | set(CLASS_NAMES))

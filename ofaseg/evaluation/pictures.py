"""Pictures of segmentations: coloured label maps, overlays, legends with class names, index PNGs."""

import io
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from ofaseg.atomic import atomic_write
from ofaseg.utils import drawing
from ofaseg.utils.drawing import IGNORE_COLOUR, colour_map, enlarge, outlines, overlay, shrink, with_legend
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

__all__ = ["IGNORE_COLOUR", "class_areas", "colour_map", "comparison", "encode", "enlarge", "error_overlay", "index_png", "outlines"]
__all__ += ["overlay", "overlay_with_legend", "read_index_png", "shrink", "with_legend", "write"]

ERROR_COLOUR = (226, 30, 60)
"""RGB laid over wrong pixels."""

DEFAULTS = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 88}}
"""Format -> options of `encode`."""


def error_overlay(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, float]:
    """The photo in grey with wrong pixels in red and unlabelled ones darkened.

    Args:
        image: (H, W, 3) uint8.
        truth: (H, W) class ids or IGNORE_INDEX.
        prediction: (H, W) class ids.

    Returns:
        (H, W, 3) uint8, and the share 0..1 of the labelled pixels that is wrong (0 without labels).
    """
    labelled = truth != IGNORE_INDEX
    wrong = labelled & (truth != prediction)
    grey = np.repeat((image @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=2)
    drawn = np.where(wrong[..., None], 0.35 * grey + 0.65 * np.array(ERROR_COLOUR), grey)
    drawn = np.where(labelled[..., None], drawn, 0.45 * grey)
    return (drawn + 0.5).astype(np.uint8), float(wrong.sum()) / max(1, int(labelled.sum()))


def class_areas(label_map: np.ndarray, vocabulary: ClassVocabulary) -> list[dict]:
    """Classes that occur, largest first: dicts of class_id, name, pixels, percent (of all pixels of the map)."""
    counts = np.bincount(label_map[label_map != IGNORE_INDEX].ravel(), minlength=len(vocabulary))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda k: (-counts[k], k))
    share = 100 / max(1, label_map.size)
    return [
        {"class_id": k, "name": vocabulary.names[k], "pixels": int(counts[k]), "percent": round(share * int(counts[k]), 3)} for k in order
    ]


def overlay_with_legend(image: np.ndarray, label_map: np.ndarray, vocabulary: ClassVocabulary, min_side: int = 320) -> Image.Image:
    """Overlay of one photo with a legend of the classes that occur, largest first, with their share of the picture."""
    areas = class_areas(label_map, vocabulary)
    large, (large_map,) = enlarge(image, [label_map], min_side)
    entries = [(f"{area['name']} {area['percent']:.1f} %", vocabulary.palette[area["class_id"]]) for area in areas]
    return with_legend(overlay(large, large_map, vocabulary.palette), entries)


def index_png(label_map: np.ndarray, palette) -> bytes:
    """A PNG whose pixel values are the class ids: 8 bit with a palette up to 255 classes (255 = no label), else 16 bit (65535)."""
    ignore, small = (255, True) if len(palette) <= 255 else (65535, False)
    values = np.where(label_map == IGNORE_INDEX, ignore, label_map)
    picture = Image.fromarray(values.astype(np.uint8 if small else np.uint16))
    if small:
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: len(palette)] = palette
        colours[255] = IGNORE_COLOUR
        picture = picture.convert("L")
        picture.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_index_png(path) -> np.ndarray:
    """Inverse of `index_png`: (H, W) int32 with IGNORE_INDEX."""
    with Image.open(path) as picture:
        values = np.asarray(picture).astype(np.int32)
        ignore = 255 if picture.mode in ("P", "L") else 65535
    return np.where(values == ignore, IGNORE_INDEX, values)


def encode(picture, format: str = "PNG", **options) -> bytes:
    """PNG or JPEG bytes of a (H, W, 3) uint8 array or Pillow image.

    PNG is written at the quickest level: a third of the time, and what is drawn over photos hardly becomes larger.
    """
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format, **(DEFAULTS[format] | options))
    return buffer.getvalue()


def write(path, data: bytes) -> None:
    """Writes picture bytes atomically, making the folder."""
    with atomic_write(path) as file:
        file.write(data)


def comparison(
    image: np.ndarray, label_maps: dict[str, Optional[np.ndarray]], vocabulary: ClassVocabulary, min_side: int = 288
) -> Image.Image:
    """Panels side by side, each with its title above, and one legend below for all classes that occur.

    Args:
        image: (H, W, 3) uint8.
        label_maps: title -> (H, W) label map drawn over the photo, or None for the bare photo.
    """
    present = sorted({area["class_id"] for m in label_maps.values() if m is not None for area in class_areas(m, vocabulary)})
    image, large_maps = enlarge(image, list(label_maps.values()), min_side)
    gap, title = 8, 26
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (len(large_maps) * (width + gap) - gap, height + title), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for i, (name, label_map) in enumerate(zip(label_maps, large_maps)):
        left = i * (width + gap)
        drawn = image if label_map is None else overlay(image, label_map, vocabulary.palette)
        canvas.paste(Image.fromarray(drawn), (left, title))
        draw.text((left + 2, title / 2), name, font=drawing.font(15, name), fill=(60, 60, 60), anchor="lm")
    return with_legend(np.asarray(canvas), [(vocabulary.names[k], vocabulary.palette[k]) for k in present], font_size=15)

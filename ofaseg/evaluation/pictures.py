"""Pictures of segmentations: coloured label maps, overlays, legends with class names, index PNGs."""

import functools
import io
from typing import Optional, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ofaseg.atomic import atomic_write
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

IGNORE_COLOUR = (128, 128, 128)
"""RGB of pixels without a label."""

ERROR_COLOUR = (226, 30, 60)
"""RGB laid over wrong pixels."""

FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "Arial.ttf")
"""Looked for in this order by names that Pillow's built-in font (Latin letters) cannot write."""


def colour_map(label_map: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) class ids (IGNORE_INDEX allowed) -> (H, W, 3) uint8."""
    table = np.array([*palette, IGNORE_COLOUR], dtype=np.uint8)  # index -1 is the last entry
    return table[np.where(label_map == IGNORE_INDEX, len(palette), label_map)]


def outlines(label_map: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another class."""
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    edge[:-1] |= label_map[:-1] != label_map[1:]
    return edge


def overlay(image: np.ndarray, label_map: np.ndarray, palette, alpha: float = 0.55, outline: bool = True) -> np.ndarray:
    """The photo under its coloured label map, classes outlined; unlabelled pixels show the photo darkened.

    The photo loses most of its own colour, so that the colours of the legend can be recognised.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W) class ids or IGNORE_INDEX.
        palette: K RGB triples.
        alpha: weight of the colours, 0..1.

    Returns:
        (H, W, 3) uint8.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"image {image.shape[:2]} and label map {label_map.shape} differ in size; draw both at the photo's size")
    grey = image @ np.array([0.299, 0.587, 0.114])
    muted = 0.2 * image + 0.8 * grey[..., None]
    mixed = muted * (1 - alpha) + colour_map(label_map, palette) * alpha
    mixed = np.where((label_map == IGNORE_INDEX)[..., None], image * 0.45, mixed)
    if outline:
        mixed[outlines(label_map)] = 255
    return (mixed + 0.5).astype(np.uint8)


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


def enlarge(image: np.ndarray, label_maps: Sequence[Optional[np.ndarray]], min_side: int) -> tuple[np.ndarray, list]:
    """Photo and label maps enlarged by one whole factor until the short side is at least `min_side`, so that outlines stay thin."""
    factor = -(-min_side // min(image.shape[:2]))
    if factor <= 1:
        return image, list(label_maps)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return large, [None if m is None else m.repeat(factor, 0).repeat(factor, 1) for m in label_maps]


def shrink(image: np.ndarray, label_maps: Sequence[Optional[np.ndarray]], max_side: int) -> tuple[np.ndarray, list]:
    """Photo and label maps made smaller (labels by nearest pixel) until the long side is at most `max_side`."""
    height, width = image.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return image, list(label_maps)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    rows = (np.arange(size[1]) + 0.5) * height / size[1]
    columns = (np.arange(size[0]) + 0.5) * width / size[0]
    nearest = np.ix_(rows.astype(int), columns.astype(int))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return small, [None if m is None else m[nearest] for m in label_maps]


def class_areas(label_map: np.ndarray, vocabulary: ClassVocabulary) -> list[dict]:
    """Classes that occur, largest first: dicts of class_id, name, pixels, percent (of all pixels of the map)."""
    counts = np.bincount(label_map[label_map != IGNORE_INDEX].ravel(), minlength=len(vocabulary))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda k: (-counts[k], k))
    share = 100 / max(1, label_map.size)
    return [
        {"class_id": k, "name": vocabulary.names[k], "pixels": int(counts[k]), "percent": round(share * int(counts[k]), 3)} for k in order
    ]


def with_legend(picture: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int]]], font_size: int = 0) -> Image.Image:
    """A picture with a legend below: one swatch and name per entry (name, RGB), as many lines as they need.

    `font_size` in pixels; 0 chooses it by the width of the picture. Very narrow pictures are put on a wider canvas.
    """
    font_size = font_size or max(13, min(28, picture.shape[1] // 42))
    gap, swatch = round(font_size * 0.7), font_size
    fonts = [_font(font_size, name) for name, _ in entries]
    widths = [swatch + gap // 2 + round(font.getlength(name)) for font, (name, _) in zip(fonts, entries)]
    canvas_width = max(picture.shape[1], max(widths, default=0) + 2 * gap)
    positions, x, y = [], gap, gap
    for width in widths:
        if x > gap and x + width + gap > canvas_width:
            x, y = gap, y + round(font_size * 1.6)
        positions.append((x, y))
        x += width + round(1.6 * gap)
    height = picture.shape[0] + (y + font_size + gap + gap // 2 if entries else 0)
    canvas = Image.new("RGB", (canvas_width, height), (255, 255, 255))
    canvas.paste(Image.fromarray(picture), ((canvas_width - picture.shape[1]) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for (x, y), font, (name, colour) in zip(positions, fonts, entries):
        top = picture.shape[0] + y
        draw.rounded_rectangle((x, top, x + swatch, top + swatch), radius=swatch // 5, fill=tuple(colour), outline=(90, 90, 90))
        draw.text((x + swatch + gap // 2, top + swatch / 2), name, font=font, fill=(30, 30, 30), anchor="lm")
    return canvas


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
    """PNG or JPEG bytes of a (H, W, 3) uint8 array or Pillow image."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format, **({"quality": 88} | options if format == "JPEG" else options))
    return buffer.getvalue()


def _font(size: int, text: str):
    """Pillow's own font for Latin text; for other scripts the first system font of FONTS, if any."""
    return _latin_font(size) if all(ord(character) < 0x250 for character in text) else _wide_font(size)


@functools.lru_cache
def _latin_font(size: int):
    return ImageFont.load_default(size)


@functools.lru_cache
def _wide_font(size: int):
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


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
        draw.text((left + 2, title / 2), name, font=_font(15, name), fill=(60, 60, 60), anchor="lm")
    return with_legend(np.asarray(canvas), [(vocabulary.names[k], vocabulary.palette[k]) for k in present], font_size=15)

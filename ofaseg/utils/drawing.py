"""Drawing of label maps and legends in colours: for every part that shows pictures."""

import functools
from typing import Optional, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ofaseg.vocabulary import IGNORE_INDEX

IGNORE_COLOUR = (128, 128, 128)
"""RGB of pixels without a label."""

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


LONGEST_SIDE = 8192


def enlarge(image: np.ndarray, label_maps: Sequence[Optional[np.ndarray]], min_side: int) -> tuple[np.ndarray, list]:
    """Photo and label maps enlarged by one whole factor until the short side is at least `min_side`, so that outlines stay thin.

    A long side stays within LONGEST_SIDE, unless it is longer already.
    """
    factor = min(-(-min_side // min(image.shape[:2])), LONGEST_SIDE // max(image.shape[:2]))
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


def with_legend(picture: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int]]], font_size: int = 0) -> Image.Image:
    """A picture with a legend below: one swatch and name per entry (name, RGB), as many lines as they need.

    `font_size` in pixels; 0 chooses it by the width of the picture. Very narrow pictures are put on a wider canvas.
    """
    font_size = font_size or max(13, min(28, picture.shape[1] // 42))
    gap, swatch = round(font_size * 0.7), font_size
    fonts = [font(font_size, name) for name, _ in entries]
    widths = [swatch + gap // 2 + round(written.getlength(name)) for written, (name, _) in zip(fonts, entries)]
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
    for (x, y), written, (name, colour) in zip(positions, fonts, entries):
        top = picture.shape[0] + y
        draw.rounded_rectangle((x, top, x + swatch, top + swatch), radius=swatch // 5, fill=tuple(colour), outline=(90, 90, 90))
        draw.text((x + swatch + gap // 2, top + swatch / 2), name, font=written, fill=(30, 30, 30), anchor="lm")
    return canvas


def font(size: int, text: str):
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

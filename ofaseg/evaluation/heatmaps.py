"""Similarity maps of phrases: their colours over the photo with a scale, and the raw values as a NumPy archive."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ofaseg.atomic import atomic_write
from ofaseg.utils import drawing

COLOURS = cv2.cvtColor(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[:, 0]
"""(256, 3) uint8 RGB from low (blue) to high (red)."""
ALPHA = 0.6
"""Weight of the colours over the photo."""


@dataclass(frozen=True)
class SimilarityMaps:
    """Cosines of one photo with P phrases.

    Attributes:
        phrases: P texts.
        cosines: (P, h, w) float32 in -1..1, one value per patch.
        scores: (P,) float32 in -1..1, of the photo as a whole.
    """

    phrases: tuple[str, ...]
    cosines: np.ndarray
    scores: np.ndarray


def save_maps(path, maps: SimilarityMaps) -> None:
    """Writes phrases, cosines and scores as an .npz file, atomically; `np.load` reads it without pickle."""
    with atomic_write(path) as file:
        np.savez_compressed(file, phrases=np.array(maps.phrases), cosines=maps.cosines, scores=maps.scores)


def stretched(cosines: np.ndarray) -> np.ndarray:
    """(h, w) -> the same with its smallest value at 0 and its largest at 1; zeros where all are the same."""
    low, high = float(cosines.min()), float(cosines.max())
    return (cosines - low) / (high - low) if high > low else np.zeros_like(cosines)


def heat_overlay(image: np.ndarray, cosines: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """The photo in grey under the colours of a map: blue where the cosine is smallest in this photo, red where it is largest.

    Args:
        image: (H, W, 3) uint8.
        cosines: (h, w), resized to the photo bilinearly.
        alpha: weight of the colours, 0..1.

    Returns: (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(stretched(cosines).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    grey = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    colours = COLOURS[np.round(heat * 255).astype(np.uint8)].astype(np.float32)
    return (grey * (1 - alpha) + colours * alpha + 0.5).astype(np.uint8)


def heat_picture(image: np.ndarray, maps: SimilarityMaps, k: int, min_side: int = 320) -> Image.Image:
    """`heat_overlay` of phrase `k`, small photos enlarged, with the phrase, the photo's score and the scale of cosines below."""
    large, _ = drawing.enlarge(image, [], min_side)
    cosines = maps.cosines[k]
    overlay = heat_overlay(large, cosines)
    size = max(13, min(28, overlay.shape[1] // 42))
    line = round(1.5 * size)
    low, high = f"{cosines.min():.3f}", f"{cosines.max():.3f}"
    canvas = Image.new("RGB", (overlay.shape[1], overlay.shape[0] + 3 * line + size // 2), (255, 255, 255))
    canvas.paste(Image.fromarray(overlay), (0, 0))
    draw = ImageDraw.Draw(canvas)
    top, room = overlay.shape[0] + line // 4, overlay.shape[1] - size
    title = _shortened(maps.phrases[k], size, room)
    draw.text((size // 2, top + line / 2), title, font=drawing.font(size, title), fill=(30, 30, 30), anchor="lm")
    written = drawing.font(size, low)
    draw.text((size // 2, top + 1.5 * line), f"photo {maps.scores[k]:.3f}, patches:", font=written, fill=(90, 90, 90), anchor="lm")
    _scale(canvas, draw, (size // 2, top + 2 * line, room, line - size // 2), (low, high), written)
    return canvas


def _scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], ends: tuple[str, str], written) -> None:
    """The colours from low to high with the cosines at their ends, inside `box` (left, top, width, height)."""
    left, top, width, height = box
    gap = height // 2
    start, end = left + round(written.getlength(ends[0])) + gap, left + width - round(written.getlength(ends[1])) - gap
    columns = max(2, end - start)
    table = COLOURS[np.linspace(0, 255, columns).round().astype(np.uint8)]
    grey = np.full(3, 128.0)  # the colours of the scale are those of the picture, over a photo of middle grey
    bar = (grey * (1 - ALPHA) + table * ALPHA + 0.5).astype(np.uint8)
    canvas.paste(Image.fromarray(np.repeat(bar[None], height, 0)), (start, top))
    draw.text((left, top + height / 2), ends[0], font=written, fill=(30, 30, 30), anchor="lm")
    draw.text((left + width, top + height / 2), ends[1], font=written, fill=(30, 30, 30), anchor="rm")


def _shortened(text: str, size: int, width: int) -> str:
    """One line of `text` that fits `width` pixels at font size `size`, with an ellipsis where it was cut."""
    text = " ".join(text.split())
    font = drawing.font(size, text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."

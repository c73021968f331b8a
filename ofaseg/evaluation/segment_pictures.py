"""Pictures of segments and objects: each in a colour of its own, numbered, with a legend of names and scores."""

import colorsys
from typing import Optional, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ofaseg.structures import InstanceSegmentation, PanopticSegmentation
from ofaseg.utils import drawing
from ofaseg.utils.drawing import enlarge, overlay, with_legend
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

SHORT_SIDE = 320
"""Small photos are enlarged to it, so that numbers and legend can be read."""
MOST_NAMED = 40
"""Objects in a legend at most; it says how many it leaves out."""
_LIGHTER = (0.0, 0.17, -0.15, 0.28, -0.24, 0.08)
_HUES = (0.0, 0.055, -0.055, 0.11, -0.11)


def segment_colours(class_ids: Sequence[int], palette: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """A colour for each segment: that of its class, varied in lightness and hue where a class has several."""
    seen: dict[int, int] = {}
    colours = []
    for class_id in class_ids:
        number = seen[class_id] = seen.get(class_id, -1) + 1
        hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in palette[class_id]))
        hue = (hue + _HUES[number % len(_HUES)]) % 1.0
        lightness = min(0.85, max(0.2, lightness + _LIGHTER[number % len(_LIGHTER)]))
        shifted = palette[class_id] if number == 0 else tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, saturation))
        colours.append(tuple(shifted))
    return colours


def panoptic_picture(image: np.ndarray, found: PanopticSegmentation, vocabulary: ClassVocabulary, legend: bool = True) -> Image.Image:
    """The photo (H, W, 3) uint8 under its segments, countable ones numbered; pixels without segment are darkened.

    The legend names segments by their area, largest first, objects with their number and score in percent. Without it the picture has
    the size of the photo.
    """
    order = sorted(range(len(found.segments)), key=lambda k: -found.segments[k]["area"])
    segments = [found.segments[k] for k in order]
    ids, pixels = np.unique(found.segment_map.cpu().numpy(), return_inverse=True)
    place_of = {segment["id"]: place for place, segment in enumerate(segments)}
    places = np.array([place_of.get(int(i), IGNORE_INDEX) for i in ids])[pixels].reshape(found.segment_map.shape)
    colours = segment_colours([segment["class_id"] for segment in segments], vocabulary.palette)
    names, numbers = [], []
    for segment in segments:
        numbers.append(str(sum(number != "" for number in numbers) + 1) if segment["is_thing"] else "")
        name = vocabulary.names[segment["class_id"]]
        share = f"{name} {100 * segment['area'] / places.size:.1f} %"
        scored = f"{numbers[-1]} {name}" + (f" ({100 * segment['score']:.0f})" if "score" in segment else "")
        names.append(scored if segment["is_thing"] else share)
    return _numbered(image, places, colours, names, numbers, legend)


def instance_picture(image: np.ndarray, found: InstanceSegmentation, vocabulary: ClassVocabulary, legend: bool = True) -> Image.Image:
    """The photo (H, W, 3) uint8 under its objects, numbered by their scores; where they overlap the one of the higher score is seen.

    Without a legend the picture has the size of the photo.
    """
    order = found.scores.argsort(descending=True, stable=True).tolist()
    class_ids, scores = found.class_ids.tolist(), found.scores.tolist()
    places = np.full(image.shape[:2], IGNORE_INDEX)
    for place, k in reversed(list(enumerate(order))):
        places[found.masks[k].cpu().numpy().astype(bool)] = place
    colours = segment_colours([class_ids[k] for k in order], vocabulary.palette)
    numbers = [str(place + 1) for place in range(len(order))]
    names = [f"{number} {vocabulary.names[class_ids[k]]} ({100 * scores[k]:.0f})" for number, k in zip(numbers, order)]
    return _numbered(image, places, colours, names, numbers, legend)


def _numbered(image: np.ndarray, places: np.ndarray, colours, names: list[str], numbers: list[str], legend: bool) -> Image.Image:
    """An overlay of the map `places` (-1 for none), whose segment k has a colour, a name in the legend and a number drawn on it."""
    large, (places,) = enlarge(image, [places], SHORT_SIDE if legend else 1)
    picture = Image.fromarray(overlay(large, places, colours))
    draw, size = ImageDraw.Draw(picture), max(13, min(34, min(places.shape) // 16))
    for k, number in enumerate(numbers):
        centre = _inside(places == k) if number else None
        if centre is not None:
            font = drawing.font(size, number)
            outline = {"stroke_width": max(1, size // 9), "stroke_fill": (20, 20, 20)}
            draw.text(centre, number, font=font, fill=(255, 255, 255), anchor="mm", **outline)
    if not legend:
        return picture
    entries = list(zip(names, colours))
    if len(entries) > MOST_NAMED:
        entries = [*entries[:MOST_NAMED], (f"and {len(entries) - MOST_NAMED} more", drawing.IGNORE_COLOUR)]
    return with_legend(np.asarray(picture), entries)


def _inside(mask: np.ndarray) -> Optional[tuple[int, int]]:
    """(x, y) of the pixel of a mask that is farthest from its border; None for an empty mask."""
    if not mask.any():
        return None
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x) - 1, int(y) - 1

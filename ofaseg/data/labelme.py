"""labelme annotations (JSON with polygons and other shapes) as label maps."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ofaseg.data.codec import MAX_PIXELS, CodecError
from ofaseg.vocabulary import IGNORE_INDEX

BACKGROUND_NAMES = ("_background_", "background")
IGNORED_LABEL = "__ignore__"
_MIN_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}


def read_labelme(path, class_names: Optional[Sequence[str]]) -> np.ndarray:
    """(H, W) int32 class ids of a labelme file, later shapes over earlier ones.

    Pixels outside all shapes are of the class "_background_" or "background" where the list has one, else without label;
    shapes labelled "__ignore__" are without label.

    Args:
        class_names: the labels that may occur; position = class id. None, for checks without a class list: any label may occur.

    Raises:
        FileNotFoundError: there is no such file.
        CodecError: no labelme file, a label that is no class, or a shape that covers no area; the message names the shape.
    """
    annotation = _load(path)
    height, width = (annotation.get(key) for key in ("imageHeight", "imageWidth"))
    if not all(isinstance(v, int) and v > 0 for v in (height, width)) or height * width > MAX_PIXELS:
        raise CodecError(f"{path}: imageHeight x imageWidth is {height!r} x {width!r}; save the file again with labelme")
    if class_names is None:
        class_names = list(dict.fromkeys(str(shape.get("label")) for shape in annotation["shapes"] if isinstance(shape, dict)))
    background = next((k for k, name in enumerate(class_names) if name in BACKGROUND_NAMES), IGNORE_INDEX)
    label_map = np.full((height, width), background, dtype=np.int32)
    for number, shape in enumerate(annotation["shapes"]):
        where = f"{path}, shape {number}"
        try:
            label = shape["label"]
            if label != IGNORED_LABEL and label not in class_names:
                raise CodecError(f"{where}: label {label!r} is not in the class list; add it there, or correct it")
            label_map[_mask(shape, height, width, where)] = IGNORE_INDEX if label == IGNORED_LABEL else class_names.index(label)
        except CodecError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
            raise CodecError(f"{where}: not as labelme writes it ({error!r}); save the file again with labelme") from error
    return label_map


def _load(path) -> dict:
    try:
        annotation = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: annotation not found; every photo needs one of the same name") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"{path}: not valid JSON ({error}); save the file again with labelme") from error
    if not isinstance(annotation, dict) or not isinstance(annotation.get("shapes"), list):
        raise CodecError(f"{path}: no labelme annotation (it has no list of shapes); export the labels as labelme JSON or as PNG maps")
    return annotation


def _mask(shape: dict, height: int, width: int, where: str) -> np.ndarray:
    """(H, W) bool: the pixels of a shape, drawn as labelme's own `shape_to_mask` draws them."""
    kind = shape.get("shape_type") or "polygon"
    if kind not in _MIN_POINTS:
        problem = f"a {kind} covers no area; draw it as one of {', '.join(_MIN_POINTS)}, or remove it"
        raise CodecError(f"{where} ({shape['label']!r}): {problem}")
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if len(points) < _MIN_POINTS[kind] or not all(math.isfinite(v) for point in points for v in point):
        raise CodecError(f"{where} ({shape['label']!r}): a {kind} of {len(points)} points; draw it again, or remove it")
    if kind == "mask":
        return _placed_mask(shape["mask"], points, height, width, where)
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    if kind == "polygon":
        draw.polygon(points, outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    else:
        (x, y), (edge_x, edge_y) = points[:2]
        radius = math.hypot(x - edge_x, y - edge_y)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    return np.asarray(canvas).astype(bool)


def _placed_mask(text: str, points: list, height: int, width: int, where: str) -> np.ndarray:
    """A shape of type "mask": a base64 PNG of the box between the two points (both inside)."""
    try:
        patch = np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True)))).astype(bool)
    except (ValueError, OSError, SyntaxError) as error:
        raise CodecError(f"{where}: its mask is no base64 PNG ({error}); save the file again with labelme") from error
    x0, y0 = round(points[0][0]), round(points[0][1])
    inside = patch.ndim == 2 and x0 >= 0 and y0 >= 0 and y0 + patch.shape[0] <= height and x0 + patch.shape[1] <= width
    if not inside:
        raise CodecError(f"{where}: its mask of shape {patch.shape} at x {x0}, y {y0} leaves the image; save the file again with labelme")
    mask = np.zeros((height, width), dtype=bool)
    mask[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]] = patch
    return mask

"""A contact sheet of a split: photos beside their label maps, to be looked at before anything is trained."""

import io
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from ofaseg.atomic import atomic_write
from ofaseg.data import codec
from ofaseg.data.shards import ShardReader
from ofaseg.utils import drawing
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

MAX_SAMPLES = 24
_COLUMNS = 4
_SIDE = 176
_GAP = 6
_TEXT = 18
_MAX_LEGEND = 60


def sheet_path(out, split: str) -> Path:
    """Where the contact sheet of a split lies in data folder `out`."""
    return Path(out) / f"contact_sheet_{split}.png"


def write_contact_sheet(out, split: str, vocabulary: Optional[ClassVocabulary]) -> None:
    """Draws up to `MAX_SAMPLES` rows of a written split, evenly spread, and writes the sheet atomically.

    Each sample is its photo, the photo under its coloured label map (when there is one), and its id; a legend names the
    classes that occur.

    Raises:
        ShardError: the shards cannot be read.
        CodecError: a stored picture cannot be decoded.
        OSError: the disk fails.
    """
    with ShardReader.for_split(out, split) as reader:
        chosen = np.linspace(0, len(reader) - 1, min(MAX_SAMPLES, len(reader))).round().astype(int)
        columns = [name for name in ("id", "image", "label_map") if name in reader.columns]
        tiles, present = [], set()
        for i in chosen:
            row = reader.read(int(i), columns)
            label_map = None
            if vocabulary is not None and row.get("label_map") is not None:
                label_map = codec.decode_label_map(row["label_map"], vocabulary, reader.location(int(i), "label_map"))
                present |= set(np.unique(label_map[label_map != IGNORE_INDEX]).tolist())
            image = codec.decode_image(row["image"], reader.location(int(i), "image"))
            tiles.append(_tile(image, label_map, row["id"], vocabulary))
    legend = [(vocabulary.names[k], vocabulary.palette[k]) for k in sorted(present)[:_MAX_LEGEND]] if present else []
    sheet = drawing.with_legend(_arrange(tiles), legend)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)  # a third of the time, and photos become a tenth larger
    with atomic_write(sheet_path(out, split)) as file:
        file.write(buffer.getvalue())


def _tile(image: np.ndarray, label_map: Optional[np.ndarray], name: str, vocabulary: Optional[ClassVocabulary]) -> Image.Image:
    """Photo, overlay and id of one sample."""
    image, (label_map,) = drawing.shrink(image, [label_map], _SIDE)
    image, (label_map,) = drawing.enlarge(image, [label_map], min(image.shape[:2]) * (_SIDE // max(image.shape[:2])))
    panels = [image] if label_map is None else [image, drawing.overlay(image, label_map, vocabulary.palette)]
    height, width = image.shape[:2]
    tile = Image.new("RGB", (len(panels) * (width + 2) - 2, height + _TEXT), (255, 255, 255))
    for k, panel in enumerate(panels):
        tile.paste(Image.fromarray(panel), (k * (width + 2), 0))
    font = drawing.font(12, name)
    while len(name) > 2 and (length := font.getlength(name)) > tile.width:  # the end of an id tells more than its start
        kept = min(len(name) - 3, int(len(name) * tile.width / length))
        name = ".." + name[len(name) - kept :]
    ImageDraw.Draw(tile).text((1, height + 2), name, font=font, fill=(40, 40, 40))
    return tile


def _arrange(tiles: list[Image.Image]) -> np.ndarray:
    """(H, W, 3) uint8: the tiles row by row on white."""
    rows = [tiles[k : k + _COLUMNS] for k in range(0, len(tiles), _COLUMNS)]
    width = max(tile.width for tile in tiles)
    canvas_width = min(_COLUMNS, len(tiles)) * (width + _GAP) + _GAP
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    canvas = Image.new("RGB", (canvas_width, sum(heights) + _GAP), (255, 255, 255))
    top = _GAP
    for row, height in zip(rows, heights):
        for k, tile in enumerate(row):
            canvas.paste(tile, (_GAP + k * (width + _GAP), top))
        top += height
    return np.asarray(canvas)

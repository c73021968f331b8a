"""Images and label maps <-> the bytes that a shard stores, and bytes <-> base64 text.

Images are JPEG or PNG files kept as they are. Label maps are single-channel PNG files, 8 bit or 16 bit, whose values the
class vocabulary explains (`ClassVocabulary.label_offset`, `ClassVocabulary.ignore_label`).
"""

import functools
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from ofaseg.data import ordinary_files
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

try:
    from pybase64 import b64decode as _b64decode
    from pybase64 import b64encode as _b64encode
except ImportError:
    from base64 import b64decode as _b64decode
    from base64 import b64encode as _b64encode

MAX_PIXELS = 178_956_970
"""Larger images are refused: a file of a few bytes may claim any size (Pillow refuses the same)."""

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Of the files that folders are searched for photos by; of several pictures in a file the first counts."""
_BEGINNINGS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"RIFF", ".webp"),
    (b"GIF8", ".gif"),
    (b"P5", ".pgm"),
    (b"P6", ".ppm"),
)

_OUT_OF_RANGE = -2
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
# what Pillow's plug-ins raise at damaged files; those of TIFF do not stop at the documented ones
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_DECODE_ERRORS += (TypeError, KeyError, IndexError, OverflowError, struct.error, zlib.error)
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class CodecError(ValueError):
    """Bytes that cannot be decoded, or an array that cannot be stored. The message says what is wrong and what to do."""


def b64encode(data: bytes) -> bytes:
    """Base64 text of `data`: standard alphabet, padded, no line breaks."""
    return _b64encode(data)


def b64decode(text: bytes, where: str = "") -> bytes:
    """The bytes behind base64 `text` in the standard or the url-safe alphabet, with or without padding.

    Raises:
        CodecError: a character outside the alphabets, or a length that no base64 text has.
    """
    if b"-" in text or b"_" in text:
        text = text.translate(_STANDARD_ALPHABET)
    if len(text) % 4:
        text = text + b"=" * (-len(text) % 4)
    try:
        return _b64decode(text, validate=True)
    except ValueError as error:
        raise CodecError(_message(where, f"not valid base64 ({error}){_base64_hint(text)}; write the row again")) from error


def _base64_hint(text: bytes) -> str:
    if text.startswith(b"\xef\xbb\xbf"):
        return "; the file starts with a UTF-8 byte order mark"
    if b"\0" in text:
        return "; it holds NUL bytes, as after an interrupted copy"
    return ""


def _message(where: str, problem: str) -> str:
    return f"{where}: {problem}" if where else problem


def _open(data: bytes, where: str) -> Image.Image:
    """Reads the header. Raises CodecError for no image, a zero or an enormous size, and animations."""
    if not data:
        raise CodecError(_message(where, "no image bytes; write the row again with its image"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            frames = getattr(image, "n_frames", 1)  # TIFF reads on to count them
    except Image.DecompressionBombError as error:
        raise CodecError(_message(where, f"{error}; store a smaller image")) from error
    except _DECODE_ERRORS as error:
        start = bytes(data[:8])
        raise CodecError(_message(where, f"not an image that can be read (starts with {start!r}); store a JPEG or PNG file")) from error
    width, height = image.size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise CodecError(_message(where, f"image size {width}x{height} is outside 1..{MAX_PIXELS} pixels; store another image"))
    if image.format != "MPO" and frames > 1:
        raise CodecError(_message(where, f"{image.format} with {frames} frames; store one of them as JPEG or PNG"))
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) when there is none."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:  # damaged EXIF does not make the pixels unreadable
        return 1
    return value if value in range(1, 9) else 1


def image_size(data: bytes, where: str = "") -> tuple[int, int]:
    """(height, width) of the image as `decode_image` returns it, from the header alone.

    Raises:
        CodecError: as `decode_image`, for faults that the header shows.
    """
    size = ordinary_files.jpeg_size(data)
    if size and size[0] * size[1] <= MAX_PIXELS:
        return size
    image = _open(data, where)
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def decode_image(data: bytes, where: str = "") -> np.ndarray:
    """Decodes an image file to (H, W, 3) uint8 RGB, upright.

    Greyscale is repeated over the channels, 16-bit values keep their upper byte, palettes and CMYK are converted,
    transparent pixels are laid over white, EXIF orientation is applied.

    Args:
        data: a JPEG, PNG or other file that Pillow reads, one frame.
        where: named at the start of an error message, such as "train.tsv, row 3, column image".

    Raises:
        CodecError: no image, truncated or damaged, animated, larger than `MAX_PIXELS`.
    """
    try:
        # this way also refuses damaged pixel data that Pillow passes over in silence
        pixels = ordinary_files.decode_jpeg(data, MAX_PIXELS)
    except ValueError as error:
        raise CodecError(_message(where, _damage("JPEG", error))) from error
    return _decode_with_pillow(data, where) if pixels is None else pixels


def _damage(format: str, error: Exception) -> str:
    return f"damaged or truncated {format} image ({error}); get the photo or write the row again"


def _decode_with_pillow(data: bytes, where: str) -> np.ndarray:
    image = _open(data, where)
    orientation = _orientation(image)
    try:
        if image.format == "JPEG" and image.mode == "RGB" and orientation == 1 and ordinary_files.simplejpeg is not None:
            return ordinary_files.simplejpeg.decode_jpeg(data, "RGB")
        image.load()
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        return np.array(_to_rgb(image, where))
    except CodecError:
        raise
    except _DECODE_ERRORS as error:
        raise CodecError(_message(where, _damage(image.format, error))) from error


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.asarray(image)
        return Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise CodecError(_message(where, "floating-point image without a known range; store 8-bit JPEG or PNG"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def narrow_dtype(vocabulary: ClassVocabulary) -> np.dtype:
    """The smallest of int16 and int32 that holds every class id and `IGNORE_INDEX`; half the memory to move through transforms."""
    return np.dtype(np.int16 if len(vocabulary) <= 2**15 else np.int32)


def decode_label_map(data: bytes, vocabulary: ClassVocabulary, where: str = "", dtype=np.int32) -> np.ndarray:
    """Decodes a label map PNG to (H, W) `dtype`: class ids 0..K-1, `IGNORE_INDEX` where there is no label.

    A stored value is class id + `vocabulary.label_offset`; `vocabulary.ignore_label` is "no label". With label offset 1
    (IFSeg's TSV files, whose ignore label is 0) a stored 255 that is no class also counts as "no label", as it does there.

    Raises:
        CodecError: not a lossless single-channel image, damaged, or a value that is neither a class nor the ignore label.
    """
    return label_ids(decode_stored_labels(data, where), vocabulary, where, dtype)


def label_ids(stored: np.ndarray, vocabulary: ClassVocabulary, where: str = "", dtype=np.int32) -> np.ndarray:
    """(H, W) `dtype` class ids of stored values (H, W) uint8 or uint16, see `decode_label_map`.

    Raises:
        CodecError: a value that is neither a class nor the ignore label.
    """
    zero_is_ignore = (vocabulary.label_offset, vocabulary.ignore_label) == (1, 0)
    if zero_is_ignore and stored.dtype == np.uint8 and stored.max(initial=0) <= len(vocabulary):
        return np.subtract(stored, 1, dtype=dtype)  # 0, no label, becomes `IGNORE_INDEX`; half the time of a table
    table = _label_table(len(vocabulary), vocabulary.label_offset, vocabulary.ignore_label, 8 * stored.dtype.itemsize, np.dtype(dtype))
    label_map = cv2.LUT(stored, table) if stored.dtype == np.uint8 else table[stored]
    if label_map.size and int(label_map.min()) == _OUT_OF_RANGE:
        raise CodecError(_message(where, _out_of_range_problem(stored, label_map, vocabulary)))
    return label_map


@functools.lru_cache(maxsize=16)
def _label_table(num_classes: int, offset: int, ignore_label: int, bits: int, dtype: np.dtype) -> np.ndarray:
    """(2**bits,) `dtype`: class id of each stored value, or `_OUT_OF_RANGE`."""
    table = np.full(2**bits, _OUT_OF_RANGE, dtype=dtype)
    if offset == 1 and bits == 8:
        table[255] = IGNORE_INDEX
    last = min(offset + num_classes, len(table))
    table[offset:last] = np.arange(last - offset, dtype=dtype)
    if 0 <= ignore_label < len(table):
        table[ignore_label] = IGNORE_INDEX
    return table


def _out_of_range_problem(stored: np.ndarray, label_map: np.ndarray, vocabulary: ClassVocabulary) -> str:
    bad = label_map == _OUT_OF_RANGE
    row, column = np.argwhere(bad)[0]
    values = np.unique(stored[bad])
    shown = ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")
    first = vocabulary.label_offset
    return (
        f"label value {shown} in {int(bad.sum())} pixels, first at y={row}, x={column}; allowed are {first}..{first + len(vocabulary) - 1} "
        f"({len(vocabulary)} classes) and {vocabulary.ignore_label} (ignore); check the number of class names, label_offset and "
        "ignore_index, or map the labels again"
    )


def decode_stored_labels(data: bytes, where: str = "") -> np.ndarray:
    """(H, W) uint8 or uint16: the values of a label map as they are stored, before any vocabulary explains them.

    Raises:
        CodecError: not a lossless single-channel image, or damaged.
    """
    values = ordinary_files.decode_index_png(data, MAX_PIXELS)
    if values is not None:
        return values
    image = _open(data, where)
    if image.format in ("JPEG", "MPO"):
        raise CodecError(_message(where, "the label map is a JPEG, whose compression changes class ids; store it as PNG"))
    if image.mode not in ("L", "P", "1", *_SIXTEEN_BIT_MODES):
        cure = "convert it to ids (colours that stand for classes: `prepare.py folder --palette`)"
        raise CodecError(_message(where, f"the label map has mode {image.mode}, not one channel of class ids; {cure}"))
    orientation = _orientation(image)
    try:
        image.load()
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        stored = np.asarray(image)
    except _DECODE_ERRORS as error:
        raise CodecError(_message(where, f"damaged or truncated {image.format} label map ({error}); write the row again")) from error
    if stored.dtype == np.uint8:
        return stored // _png_grey_scale(data) if image.mode == "L" else stored
    if stored.dtype == bool:
        return stored.astype(np.uint8)
    if stored.size and not 0 <= int(stored.min()) <= int(stored.max()) <= 65535:
        raise CodecError(_message(where, f"label values {stored.min()}..{stored.max()} do not fit 16 bits; map the labels again"))
    return stored.astype(np.uint16)


def _png_grey_scale(data: bytes) -> np.uint8:
    """What Pillow multiplies greyscale PNG values of fewer than 8 bits with (2 bits: 85, 4 bits: 17)."""
    is_grey_png = data[:4] == b"\x89PNG" and len(data) > 25 and data[25] == 0
    return np.uint8({2: 85, 4: 17}.get(data[24], 1) if is_grey_png else 1)


def encode_image(array: np.ndarray, format: str = "png", quality: int = 95) -> bytes:
    """Encodes an (H, W, 3) or (H, W) uint8 array as "png" (lossless) or "jpeg" (`quality` 1..100).

    Raises:
        CodecError: another shape, another dtype, an empty array, an unknown format.
    """
    array = np.asarray(array)
    is_image = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) and array.size
    if not is_image:
        raise CodecError(f"an image must be (H, W, 3) or (H, W) uint8, not {array.shape} {array.dtype}")
    format = {"jpg": "jpeg"}.get(format.lower(), format.lower())
    if format not in ("png", "jpeg"):
        raise CodecError(f"unknown image format {format!r}; choose png or jpeg")
    return _save(Image.fromarray(array), format, {"quality": quality} if format == "jpeg" else {})


def encode_label_map(array: np.ndarray, vocabulary: ClassVocabulary) -> bytes:
    """Encodes an (H, W) integer array of class ids 0..K-1 and `IGNORE_INDEX` as PNG; `decode_label_map` reads it back.

    16 bits are used only when the vocabulary's values need them.

    Raises:
        CodecError: another shape or dtype, an empty array, a value that is neither a class id nor `IGNORE_INDEX`.
    """
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise CodecError(f"a label map must be (H, W) integers, not {array.shape} {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < IGNORE_INDEX or high >= len(vocabulary):
        raise CodecError(f"label map holds {low}..{high}; allowed are 0..{len(vocabulary) - 1} and {IGNORE_INDEX} (ignore)")
    largest = max(vocabulary.ignore_label, vocabulary.label_offset + len(vocabulary) - 1)
    if largest > 65535:
        raise CodecError(f"stored label values up to {largest} do not fit 16-bit PNG; use at most 65535 classes")
    stored = np.where(array == IGNORE_INDEX, vocabulary.ignore_label, array.astype(np.int64) + vocabulary.label_offset)
    return _save(Image.fromarray(stored.astype(np.uint8 if largest <= 255 else np.uint16)), "png", {})


def encode_segment_map(array: np.ndarray) -> bytes:
    """Encodes an (H, W) integer array of segment ids 0..2**24-1 (0 = none) as RGB PNG, id = R + 256 G + 65536 B.

    Raises:
        CodecError: another shape or dtype, an empty array, an id outside the range.
    """
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise CodecError(f"a segment map must be (H, W) integers, not {array.shape} {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) >= 2**24:
        raise CodecError(f"segment ids {array.min()}..{array.max()} are outside 0..{2**24 - 1}")
    ids = array.astype(np.uint32)
    return _save(Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)), "png", {})


def decode_segment_map(data: bytes, where: str = "") -> np.ndarray:
    """Inverse of `encode_segment_map`, for readers of the column: (H, W) int32 segment ids, 0 = none.

    Raises CodecError as `decode_image`.
    """
    pixels = ordinary_files.decode_rgb_png(data, MAX_PIXELS)
    if pixels is not None:
        return (pixels.view("<i4")[..., 0] & 0xFFFFFF).astype(np.int32, copy=False)  # the lower three bytes of a number
    image = _open(data, where)
    if image.format in ("JPEG", "MPO") or image.mode != "RGB":
        raise CodecError(_message(where, f"a segment map must be an RGB PNG, not {image.format} {image.mode}; write the row again"))
    rgb = decode_image(data, where).astype(np.int32)
    return rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)


def suffix_of(data: bytes) -> str:
    """The usual ending of a photo's file name, told by its first bytes; "" for none of those known."""
    return next((suffix for beginning, suffix in _BEGINNINGS if data.startswith(beginning)), "")


def _save(image: Image.Image, format: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()

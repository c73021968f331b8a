"""Quick decoders of the two kinds of file that nearly every row holds; anything else is left to Pillow in `codec`.

A colour JPEG and an 8-bit greyscale or palette PNG are recognised from their headers alone. What is decoded here has
the pixels that Pillow returns, sooner. Nothing here judges a file: None means "look at it properly".
"""

import struct
import zlib
from typing import Optional

import cv2
import numpy as np

try:
    import simplejpeg
except ImportError:  # an optional, faster decoder of ordinary colour JPEGs with the same pixels
    simplejpeg = None

_START_OF_FRAME = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive
_START_OF_SCAN, _EXIF_SEGMENT, _MULTI_PICTURE_SEGMENT = 0xDA, 0xE1, 0xE2
_PLAIN_SEGMENTS = frozenset([0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)])  # tables, restart interval, comment, application data

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
# chunks that change neither the values nor the orientation (eXIf does, and text may hold EXIF; acTL starts an animation)
_HARMLESS_CHUNKS = frozenset([b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"hIST", b"pHYs", b"tIME"])


def jpeg_size(data: bytes) -> Optional[tuple[int, int]]:
    """(height, width) of an ordinary JPEG: 8 bits, three components, neither EXIF nor a second picture. None otherwise."""
    if data[:2] != b"\xff\xd8":
        return None
    size, position = None, 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = data[position + 2] << 8 | data[position + 3]
        if marker == _START_OF_SCAN:
            return size
        if marker in _START_OF_FRAME:
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if size or (precision, components) != (8, 3) or not height or not width:
                return None
            size = height, width
        elif marker == _EXIF_SEGMENT or marker not in _PLAIN_SEGMENTS or length < 2:
            return None
        elif marker == _MULTI_PICTURE_SEGMENT and data[position + 4 : position + 8] == b"MPF\0":
            return None
        position += 2 + length
    return None


def decode_jpeg(data: bytes, max_pixels: int) -> Optional[np.ndarray]:
    """(H, W, 3) uint8 RGB of an ordinary JPEG of at most `max_pixels`; None for another file, or without simplejpeg.

    Raises:
        ValueError: the picture data are damaged or end early.
    """
    size = jpeg_size(data) if simplejpeg is not None else None
    if size is None or size[0] * size[1] > max_pixels:
        return None
    return simplejpeg.decode_jpeg(data, "RGB")


def decode_index_png(data: bytes, max_pixels: int) -> Optional[np.ndarray]:
    """(H, W) uint8 values, as stored, of an intact 8-bit greyscale or palette PNG of at most `max_pixels`; else None.

    OpenCV turns a palette into colours and stretches by transparency, so it is given the picture chunks alone, declared as
    greyscale. It is silent about damage, so the checksums of all chunks are compared first.
    """
    values = _plain_picture(data, (_GREY, _PALETTE), _GREY, max_pixels)
    return values if values is not None and values.ndim == 2 else None


def decode_rgb_png(data: bytes, max_pixels: int) -> Optional[np.ndarray]:
    """(H, W, 4) uint8 RGB and 255 of an intact 8-bit RGB PNG without transparency, of at most `max_pixels`; else None."""
    values = _plain_picture(data, (_RGB,), _RGB, max_pixels)
    return cv2.cvtColor(values, cv2.COLOR_BGR2RGBA) if values is not None and values.ndim == 3 and values.shape[2] == 3 else None


def _plain_picture(data: bytes, kinds: tuple[int, ...], declared: int, max_pixels: int) -> Optional[np.ndarray]:
    """What OpenCV decodes of the picture chunks of a PNG of one of the colour types `kinds`, declared as `declared`; else None."""
    found = _picture_chunks(data, kinds)
    if found is None:
        return None
    width, height, chunks = found
    if not 0 < width * height <= max_pixels:
        return None
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, declared, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    plain = b"".join([_PNG_SIGNATURE, header, *chunks, b"\0\0\0\0IEND\xaeB`\x82"])
    values = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_UNCHANGED)
    return values if values is not None and values.shape[:2] == (height, width) and values.dtype == np.uint8 else None


def _picture_chunks(data: bytes, kinds: tuple[int, ...]) -> Optional[tuple[int, int, list]]:
    """(width, height, whole IDAT chunks) of an intact 8-bit PNG of one of the colour types `kinds`, without interlacing; else None."""
    if data[:8] != _PNG_SIGNATURE or data[12:16] != b"IHDR" or data[24:29] not in [bytes([8, kind, 0, 0, 0]) for kind in kinds]:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    view, chunks, has_palette, position = memoryview(data), [], data[25] != _PALETTE, 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return None
        if kind == b"IEND":
            return (width, height, chunks) if chunks and has_palette else None
        if kind == b"IDAT":
            chunks.append(view[position:end])
        elif (kind not in _HARMLESS_CHUNKS and position != 8) or (kind == b"tRNS" and _RGB in kinds):
            return None
        has_palette = has_palette or kind == b"PLTE"
        position = end
    return None

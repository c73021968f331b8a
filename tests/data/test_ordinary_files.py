"""The quick decoders: Pillow's pixels on every kind of file, and the same verdict on damaged ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ofaseg.data import codec, ordinary_files
from ofaseg.data.codec import MAX_PIXELS, CodecError
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=tuple(f"class {k}" for k in range(200)))
HEIGHT, WIDTH = 45, 70


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def photo() -> Image.Image:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.stack([rows * 4, columns * 3, (rows + columns) * 2], axis=-1) + noise).clip(0, 255).astype(np.uint8))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def jpeg_with_segment(marker: int, payload: bytes) -> bytes:
    data = saved(photo(), "JPEG")
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + data[2:]


ORDINARY_JPEGS = {
    "baseline 4:2:0": saved(photo(), "JPEG", subsampling=2),
    "baseline 4:2:2": saved(photo(), "JPEG", subsampling=1),
    "baseline 4:4:4": saved(photo(), "JPEG", subsampling=0, quality=97),
    "progressive": saved(photo(), "JPEG", progressive=True),
    "optimised": saved(photo(), "JPEG", optimize=True, quality=30),
    "restart intervals": saved(photo(), "JPEG", restart_marker_blocks=2),
    "comment and resolution": saved(photo(), "JPEG", comment=b"a photo", dpi=(300, 300)),
    "colour profile": saved(photo(), "JPEG", icc_profile=bytes(3000)),
    "RGB components": saved(photo(), "JPEG", keep_rgb=True),
}
OTHER_JPEGS = {
    "grey": saved(photo().convert("L"), "JPEG"),
    "CMYK": saved(photo().convert("CMYK"), "JPEG"),
    "XMP": jpeg_with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    **{f"EXIF orientation {k}": saved(photo(), "JPEG", exif=exif(k)) for k in range(1, 9)},
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, scanlines: bytes, bits=8, colour=0, interlaced=0, before=b"", stream=None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    stream = zlib.compress(scanlines) if stream is None else stream
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, (HEIGHT, WIDTH)).astype(np.uint8)


def filtered_scanlines(values: np.ndarray) -> bytes:
    """Rows filtered by none, sub, up, average and Paeth in turn (PNG specification, section 9)."""
    out, above = b"", np.zeros(values.shape[1], int)
    for k, row in enumerate(values.astype(int)):
        left, corner = np.concatenate([[0], row[:-1]]), np.concatenate([[0], above[:-1]])
        distance = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))  # to left, above, corner
        nearest = np.choose(np.argmin(distance, axis=0), [left, above, corner])
        guess = [0, left, above, (left + above) // 2, nearest][k % 5]
        out += bytes([k % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def interlaced_scanlines(values: np.ndarray) -> bytes:
    """The seven passes of Adam7, unfiltered."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx])


def palette_image(colours: int) -> Image.Image:
    image = Image.fromarray(labels() % colours).convert("P")
    image.putpalette(np.random.default_rng(2).integers(0, 256, 3 * colours).astype(np.uint8).tobytes())
    return image


def grey_image() -> Image.Image:
    return Image.fromarray(labels())


def animated() -> bytes:
    return saved(grey_image(), "PNG", save_all=True, append_images=[Image.fromarray(labels()[::-1].copy())])


PALETTE_CHUNK = chunk(b"PLTE", bytes(range(150)) * 4)
ORDINARY_PNGS = {
    "grey": saved(grey_image(), "PNG"),
    "grey, optimised": saved(grey_image(), "PNG", optimize=True),
    "grey with one transparent value": saved(grey_image(), "PNG", transparency=3),
    "grey with resolution and profile": saved(grey_image(), "PNG", dpi=(72, 72), icc_profile=bytes(200)),
    "grey with gamma": png(WIDTH, HEIGHT, filtered_scanlines(labels()), before=chunk(b"gAMA", struct.pack(">I", 45455))),
    "every filter": png(WIDTH, HEIGHT, filtered_scanlines(labels())),
    "palette": saved(palette_image(200), "PNG"),
    "palette with transparency": saved(palette_image(200), "PNG", transparency=bytes(range(200))),
    "palette, every filter": png(WIDTH, HEIGHT, filtered_scanlines(labels()), colour=3, before=PALETTE_CHUNK),
    "several picture chunks": saved(Image.fromarray(np.random.default_rng(3).integers(0, 200, (300, 500)).astype(np.uint8)), "PNG"),
    "one pixel": saved(Image.fromarray(np.full((1, 1), 7, np.uint8)), "PNG"),
}
OTHER_PNGS = {
    "1 bit": saved(Image.fromarray(labels() % 2 == 1), "PNG"),
    "2 bits": png(8, 2, b"\0\x1b\x27\0\xe4\x00", bits=2),
    "4 bits": png(4, 2, b"\0\x12\x34\0\xf0\x0e", bits=4),
    "palette of 2 bits": saved(palette_image(4), "PNG"),
    "palette of 4 bits": saved(palette_image(16), "PNG"),
    "16 bits": saved(Image.fromarray(labels().astype(np.uint16)), "PNG"),
    "interlaced": png(WIDTH, HEIGHT, interlaced_scanlines(labels()), interlaced=1),
    "interlaced palette": png(WIDTH, HEIGHT, interlaced_scanlines(labels()), colour=3, interlaced=1, before=PALETTE_CHUNK),
    **{f"EXIF orientation {k}": saved(grey_image(), "PNG", exif=exif(k)) for k in (1, 3, 6)},
    "RGB": saved(photo(), "PNG"),
    "grey with alpha": saved(grey_image().convert("LA"), "PNG"),
    "animated": animated(),
    "GIF": saved(grey_image(), "GIF"),
    "JPEG": saved(grey_image(), "JPEG"),
    "palette missing": png(WIDTH, HEIGHT, filtered_scanlines(labels()), colour=3),
    "nothing": b"",
}


def verdict(decode, data: bytes):
    """What decoding gives: an array, or the message of its error."""
    try:
        return decode(data)
    except CodecError as error:
        return str(error)


def assert_same(ours, theirs) -> None:
    assert type(ours) is type(theirs), (ours, theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def by_pillow(data: bytes) -> np.ndarray:
    return codec._decode_with_pillow(data, "")


def label_map(data: bytes) -> np.ndarray:
    return codec.decode_label_map(data, VOCABULARY)


@pytest.fixture
def label_map_by_pillow(monkeypatch):
    def decode(data: bytes) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(ordinary_files, "decode_index_png", lambda *_: None)
            return label_map(data)

    return decode


def damaged(data: bytes, count: int = 60) -> list[bytes]:
    """Truncated at `count` places, and with a byte changed at as many."""
    rng = np.random.default_rng(0)
    places = rng.integers(1, len(data), count)
    changed = [data[:k] + bytes([data[k] ^ int(rng.integers(1, 256))]) + data[k + 1 :] for k in rng.integers(0, len(data), count)]
    return [data[:k] for k in places] + changed


class TestJpeg:
    @pytest.mark.parametrize("kind", ORDINARY_JPEGS)
    def test_ordinary(self, kind):
        pytest.importorskip("simplejpeg")
        data = ORDINARY_JPEGS[kind]
        assert ordinary_files.jpeg_size(data) == codec.image_size(data) == (HEIGHT, WIDTH)
        quick = ordinary_files.decode_jpeg(data, MAX_PIXELS)
        assert quick is not None and quick.flags.writeable
        assert_same(quick, by_pillow(data))
        assert_same(quick, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    @pytest.mark.parametrize("kind", OTHER_JPEGS)
    def test_others_are_left_to_pillow(self, kind):
        data = OTHER_JPEGS[kind]
        assert ordinary_files.decode_jpeg(data, MAX_PIXELS) is None and ordinary_files.jpeg_size(data) is None
        assert_same(codec.decode_image(data), by_pillow(data))
        upright = HEIGHT, WIDTH
        assert codec.image_size(data) == (upright[::-1] if kind[-1] in "5678" else upright)

    def test_two_pictures_in_one_file(self):
        data = saved(photo(), "MPO", save_all=True, append_images=[photo().transpose(Image.Transpose.ROTATE_180)])
        assert ordinary_files.decode_jpeg(data, MAX_PIXELS) is None
        assert_same(codec.decode_image(data), by_pillow(data))

    def test_enormous(self):
        assert ordinary_files.decode_jpeg(ORDINARY_JPEGS["progressive"], HEIGHT * WIDTH - 1) is None

    @pytest.mark.parametrize("kind", ["baseline 4:2:0", "progressive"])
    def test_no_damage_is_passed_over_that_was_noticed_before(self, kind):
        for data in damaged(ORDINARY_JPEGS[kind]):
            new, old = verdict(codec.decode_image, data), verdict(by_pillow, data)
            if isinstance(old, str):
                assert isinstance(new, str)
            else:
                assert_same(new, old)

    def test_without_the_optional_decoder(self, monkeypatch):
        expected = codec.decode_image(ORDINARY_JPEGS["baseline 4:4:4"])
        monkeypatch.setattr(ordinary_files, "simplejpeg", None)
        assert ordinary_files.decode_jpeg(ORDINARY_JPEGS["baseline 4:4:4"], MAX_PIXELS) is None
        assert_same(codec.decode_image(ORDINARY_JPEGS["baseline 4:4:4"]), expected)


class TestIndexPng:
    @pytest.mark.parametrize("kind", ORDINARY_PNGS)
    def test_ordinary(self, kind, label_map_by_pillow):
        data = ORDINARY_PNGS[kind]
        quick = ordinary_files.decode_index_png(data, MAX_PIXELS)
        assert quick is not None and quick.dtype == np.uint8
        np.testing.assert_array_equal(quick, np.asarray(Image.open(io.BytesIO(data))))
        assert_same(label_map(data), label_map_by_pillow(data))

    @pytest.mark.parametrize("kind", OTHER_PNGS)
    def test_others_are_left_to_pillow(self, kind, label_map_by_pillow):
        data = OTHER_PNGS[kind]
        assert ordinary_files.decode_index_png(data, MAX_PIXELS) is None
        assert_same(verdict(label_map, data), verdict(label_map_by_pillow, data))

    def test_the_interlaced_file_is_what_it_should_be(self):
        np.testing.assert_array_equal(label_map(OTHER_PNGS["interlaced"]), labels())

    @pytest.mark.parametrize("kind", ["grey", "palette", "several picture chunks"])
    def test_the_same_verdict_on_damaged_files(self, kind, label_map_by_pillow):
        verdicts = [(verdict(label_map, data), verdict(label_map_by_pillow, data)) for data in damaged(ORDINARY_PNGS[kind])]
        assert sum(isinstance(new, str) for new, _ in verdicts) > 100
        for new, old in verdicts:
            assert_same(new, old)

    @pytest.mark.parametrize("spoil", ["half the rows", "no data", "not compressed", "cut stream", "unknown filter", "a row too many"])
    def test_damage_below_valid_checksums(self, spoil, label_map_by_pillow):
        lines = filtered_scanlines(labels())
        stream = {
            "half the rows": zlib.compress(lines[: len(lines) // 2]),
            "no data": zlib.compress(b""),
            "not compressed": lines,
            "cut stream": zlib.compress(lines)[:-100],
            "unknown filter": zlib.compress(b"\x09" + lines[1:]),
            "a row too many": zlib.compress(lines + bytes(WIDTH + 1)),
        }[spoil]
        data = png(WIDTH, HEIGHT, b"", stream=stream)
        assert_same(verdict(label_map, data), verdict(label_map_by_pillow, data))

    def test_size_of_zero_or_enormous(self, label_map_by_pillow):
        for width, height in ((0, 5), (5, 0), (50_000, 50_000)):
            data = png(width, height, b"")
            assert ordinary_files.decode_index_png(data, MAX_PIXELS) is None
            assert_same(verdict(label_map, data), verdict(label_map_by_pillow, data))
        assert ordinary_files.decode_index_png(ORDINARY_PNGS["grey"], HEIGHT * WIDTH - 1) is None


def test_real_photos_and_masks(real_data, label_map_by_pillow):
    root = real_data / "coco_mini"
    photos = sorted((root / "val2017").glob("*.jpg"))[:20]
    for path in photos:
        data = path.read_bytes()
        assert_same(codec.decode_image(data), by_pillow(data))
        mask = (root / "semseg80" / "val2017" / f"{path.stem}.png").read_bytes()
        assert ordinary_files.decode_index_png(mask, MAX_PIXELS) is not None
        np.testing.assert_array_equal(codec.decode_stored_labels(mask), np.asarray(Image.open(io.BytesIO(mask))))

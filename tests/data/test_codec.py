"""Codec: base64, odd images, label maps of 8 and 16 bits, and errors that name the value."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ofaseg.data import codec, ordinary_files
from ofaseg.data.codec import CodecError
from ofaseg.vocabulary import IGNORE_INDEX, ClassVocabulary

THREE = ClassVocabulary(names=("sky", "road", "car"))
OFFICIAL = ClassVocabulary(names=("sky", "road", "car"), label_offset=1, ignore_label=0)
THOUSAND = ClassVocabulary(names=tuple(f"class {k}" for k in range(1000)))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


class TestBase64:
    @pytest.mark.parametrize("length", [0, 1, 2, 3, 255, 4096])
    def test_round_trip_in_every_alphabet(self, length):
        data = np.random.default_rng(length).bytes(length)
        assert codec.b64encode(data) == base64.b64encode(data)
        for text in (base64.b64encode(data), base64.urlsafe_b64encode(data), base64.urlsafe_b64encode(data).rstrip(b"=")):
            assert codec.b64decode(text) == data

    @pytest.mark.parametrize("text", [b"ab*d", b"abcde", b"ab=c", b"\xef\xbb\xbfabcd", b"ab\0\0", b"ab cd="])
    def test_bad_text(self, text):
        with pytest.raises(CodecError, match="x.tsv, row 1: not valid base64"):
            codec.b64decode(text, "x.tsv, row 1")

    def test_standard_library_agrees(self, monkeypatch):
        monkeypatch.setattr(codec, "_b64decode", base64.b64decode)
        assert codec.b64decode(b"-_-_") == codec.b64decode(b"+/+/") == base64.b64decode(b"+/+/")
        with pytest.raises(CodecError):
            codec.b64decode(b"ab*d")


class TestDecodeImage:
    def test_png_is_lossless_and_axes_are_kept(self):
        image = photo(24, 40)
        data = codec.encode_image(image)
        assert codec.image_size(data) == (24, 40)
        np.testing.assert_array_equal(codec.decode_image(data), image)

    def test_jpeg_equals_pillow(self):
        pytest.importorskip("simplejpeg")
        for size in ((24, 40), (33, 17)):  # the second is no multiple of the 16-pixel blocks
            for subsampling in (0, 1, 2):
                data = encoded(Image.fromarray(photo(*size)), "JPEG", quality=85, subsampling=subsampling)
                expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                np.testing.assert_array_equal(codec.decode_image(data), expected)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA"])
    def test_lossless_modes(self, mode):
        image = Image.fromarray(photo()).convert(mode)
        out = codec.decode_image(encoded(image))
        assert out.dtype == np.uint8 and out.flags.writeable
        np.testing.assert_array_equal(out, np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("mode, format", [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("L", "JPEG"), ("LAB", "TIFF")])
    def test_other_modes(self, mode, format):
        image = Image.fromarray(photo()).convert(mode)
        out = codec.decode_image(encoded(image, format)).astype(int)
        assert out.shape == (24, 40, 3)
        assert np.abs(out - np.asarray(image.convert("RGB"))).mean() < 4

    def test_sixteen_bit_keeps_the_upper_byte(self):
        grey = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
        np.testing.assert_array_equal(codec.decode_image(encoded(grey))[0, :, 0], [0, 1, 255])

    def test_transparent_pixels_become_white(self):
        rgba = np.zeros((2, 2, 4), np.uint8)
        rgba[0, 0] = (10, 20, 30, 255)
        out = codec.decode_image(encoded(Image.fromarray(rgba)))
        np.testing.assert_array_equal(out[0, 0], [10, 20, 30])
        np.testing.assert_array_equal(out[1, 1], [255, 255, 255])

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation):
        image = Image.fromarray(photo())
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in ("JPEG", "PNG"):
            data = encoded(image, format, exif=exif.tobytes(), **({"quality": 95} if format == "JPEG" else {}))
            out = codec.decode_image(data)
            assert out.shape[:2] == codec.image_size(data) == ((40, 24) if orientation >= 5 else (24, 40))
        corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
        np.testing.assert_array_equal(out[corner], photo()[0, 0])  # where the file's first pixel belongs

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    @pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
    def test_truncated(self, format, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        data = encoded(Image.fromarray(noise), format)
        with pytest.raises(CodecError, match="a.tsv, row 7"):
            codec.decode_image(data[: int(len(data) * share)], "a.tsv, row 7")

    def test_damaged_png_data(self):
        data = bytearray(codec.encode_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)))
        data[len(data) // 2] ^= 255
        with pytest.raises(CodecError, match="damaged"):
            codec.decode_image(bytes(data))

    @pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"GIF89a", b"\0" * 100])
    def test_no_image(self, data):
        with pytest.raises(CodecError):
            codec.decode_image(data)
        with pytest.raises(CodecError):
            codec.image_size(data)

    def test_animation(self):
        frames = [Image.fromarray(photo() // k) for k in (1, 2, 3)]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        with pytest.raises(CodecError, match="3 frames"):
            codec.decode_image(data)

    def test_pixel_bomb(self):
        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
        with pytest.raises(CodecError, match="smaller image"):
            codec.decode_image(bomb)
        with pytest.raises(CodecError):
            codec.image_size(bomb)

    def test_encode_image_refuses(self):
        for bad in (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros((0, 2, 3), np.uint8)):
            with pytest.raises(CodecError, match="uint8"):
                codec.encode_image(bad)
        with pytest.raises(CodecError, match="png or jpeg"):
            codec.encode_image(photo(), "webp")


class TestLabelMap:
    @pytest.mark.parametrize("classes", [3, 254, 255])
    @pytest.mark.parametrize("dtype", [np.int16, np.int32])
    def test_zero_for_no_label_is_one_less(self, classes, dtype):
        """Without other values than 0 and classes no table is looked up; with them, one is. The ids are the same."""
        vocabulary = ClassVocabulary(names=tuple(f"class {k}" for k in range(classes)), label_offset=1, ignore_label=0)
        table = codec._label_table(classes, 1, 0, 8, np.dtype(dtype))
        for values in (np.arange(classes + 1), np.append(np.arange(classes + 1), 255)):
            ids = codec.label_ids(values.astype(np.uint8).reshape(1, -1), vocabulary, dtype=dtype)
            assert ids.dtype == dtype and ids[0, 0] == IGNORE_INDEX
            np.testing.assert_array_equal(ids[0], table[values])

    @pytest.mark.parametrize("vocabulary", [THREE, OFFICIAL, THOUSAND], ids=["3", "official", "1000"])
    def test_round_trip(self, vocabulary):
        labels = np.random.default_rng(0).integers(-1, len(vocabulary), (11, 23)).astype(np.int32)
        data = codec.encode_label_map(labels, vocabulary)
        out = codec.decode_label_map(data, vocabulary)
        assert out.dtype == np.int32 and out.shape == (11, 23)  # not (23, 11)
        np.testing.assert_array_equal(out, labels)
        stored = np.asarray(Image.open(io.BytesIO(data)))
        assert stored.dtype == (np.uint16 if len(vocabulary) == 1000 else np.uint8)
        np.testing.assert_array_equal(stored[labels == IGNORE_INDEX], vocabulary.ignore_label)

    @pytest.mark.parametrize("count, dtype", [(254, np.uint8), (255, np.uint8), (256, np.uint16)])
    def test_bits_at_the_border(self, count, dtype):
        vocabulary = ClassVocabulary(names=tuple(f"c{k}" for k in range(count)))
        labels = np.array([[0, count - 1, -1]])
        data = codec.encode_label_map(labels, vocabulary)
        assert np.asarray(Image.open(io.BytesIO(data))).dtype == dtype
        np.testing.assert_array_equal(codec.decode_label_map(data, vocabulary), labels)

    @pytest.mark.parametrize("count, dtype", [(3, np.int16), (2**15, np.int16), (2**15 + 1, np.int32)])
    def test_narrow_types_hold_every_class(self, count, dtype):
        vocabulary = ClassVocabulary(names=tuple(f"c{k}" for k in range(count)))
        labels = np.array([[0, count - 1, -1]])
        out = codec.decode_label_map(codec.encode_label_map(labels, vocabulary), vocabulary, dtype=codec.narrow_dtype(vocabulary))
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, labels)

    @pytest.mark.parametrize("dtype", [np.int16, np.int32])
    def test_value_outside_is_found_in_every_type(self, dtype):
        with pytest.raises(CodecError, match="label value 77"):
            codec.decode_label_map(encoded(Image.fromarray(np.array([[0, 77]], np.uint8))), THREE, dtype=dtype)

    def test_official_values(self):
        stored = encoded(Image.fromarray(np.array([[0, 1, 2, 3, 255]], np.uint8)))
        np.testing.assert_array_equal(codec.decode_label_map(stored, OFFICIAL), [[-1, 0, 1, 2, -1]])

    def test_value_outside_is_named(self):
        stored = np.zeros((5, 9), np.uint8)
        stored[3, 7] = 77
        message = "v.tsv, row 4, column label_map: label value 77 in 1 pixels, first at y=3, x=7; allowed are 0..2"
        with pytest.raises(CodecError, match=message):
            codec.decode_label_map(encoded(Image.fromarray(stored)), THREE, "v.tsv, row 4, column label_map")

    def test_off_by_one_is_found(self):
        data = codec.encode_label_map(np.array([[0, 1, 2]]), OFFICIAL)
        with pytest.raises(CodecError, match="label value 3"):
            codec.decode_label_map(data, THREE)

    def test_sixteen_bit_ignore_in_eight_bit_vocabulary(self):
        stored = encoded(Image.fromarray(np.array([[0, 2, 65535]], np.uint16)))
        with pytest.raises(CodecError, match="65535"):
            codec.decode_label_map(stored, THREE)

    def test_palette_values_are_ids(self):
        image = Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8), mode="P")
        image.putpalette([7, 7, 7] * 256)
        np.testing.assert_array_equal(codec.decode_label_map(encoded(image), THREE), [[0, 1, 2, -1]])

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_are_not_stretched(self, bits):
        """A greyscale PNG of 2 bits holds 0..3; decoders for display return 0, 85, 170, 255."""
        values = bytes([0b00011000]) if bits == 2 else bytes([0x01, 0x20]) if bits == 4 else bytes([0b01000000])
        width, expected = {1: (2, [0, 1]), 2: (3, [0, 1, 2]), 4: (3, [0, 1, 2])}[bits]

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + values)) + chunk(b"IEND", b"")
        np.testing.assert_array_equal(codec.decode_label_map(png, THREE), [expected])

    def test_wrong_kinds(self):
        with pytest.raises(CodecError, match="PNG"):
            codec.decode_label_map(encoded(Image.fromarray(photo()).convert("L"), "JPEG"), THREE)
        with pytest.raises(CodecError, match="mode RGB"):
            codec.decode_label_map(encoded(Image.fromarray(photo())), THREE)

    def test_truncated(self):
        data = codec.encode_label_map(np.random.default_rng(0).integers(0, 3, (80, 80)), THREE)
        with pytest.raises(CodecError, match="damaged"):
            codec.decode_label_map(data[: len(data) // 2], THREE)

    def test_encode_refuses(self):
        for bad in (np.array([[3]]), np.array([[-2]]), np.array([[255]])):
            with pytest.raises(CodecError, match="allowed are 0..2 and -1"):
                codec.encode_label_map(bad, THREE)
        with pytest.raises(CodecError, match="integers"):
            codec.encode_label_map(np.zeros((2, 2), np.float32), THREE)

    def test_segment_maps_of_any_writer(self, monkeypatch, tmp_path):
        """Read the quick way and by Pillow: plain, interlaced or with other chunks; damage is noticed either way."""
        ids = np.random.default_rng(0).integers(0, 2**24, (7, 11))
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        files = []
        for options in ({}, {"dpi": (72, 72)}, {"compress_level": 0}, {"optimize": True}):
            buffer = io.BytesIO()
            Image.fromarray(rgb).save(buffer, "png", **options)
            files.append(buffer.getvalue())
        for data in files:
            assert ordinary_files.decode_rgb_png(data, codec.MAX_PIXELS) is not None
            np.testing.assert_array_equal(codec.decode_segment_map(data), ids)
        with monkeypatch.context() as patch:
            patch.setattr(ordinary_files, "decode_rgb_png", lambda *_: None)
            for data in files:
                np.testing.assert_array_equal(codec.decode_segment_map(data), ids)
        for position in (60, len(files[0]) // 2, len(files[0]) - 20):
            damaged = bytearray(files[0])
            damaged[position] ^= 255
            assert ordinary_files.decode_rgb_png(bytes(damaged), codec.MAX_PIXELS) is None
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "png", transparency=(1, 2, 3))
        for data in (buffer.getvalue(), codec.encode_image(rgb[..., 0]), codec.encode_image(rgb, "jpeg"), files[0][:-30], b""):
            assert ordinary_files.decode_rgb_png(data, codec.MAX_PIXELS) is None
        assert ordinary_files.decode_rgb_png(files[0], 76) is None

    def test_segment_map_round_trip(self):
        ids = np.array([[0, 1, 255, 256, 65536, 2**24 - 1]])
        np.testing.assert_array_equal(codec.decode_segment_map(codec.encode_segment_map(ids)), ids)
        with pytest.raises(CodecError, match="outside"):
            codec.encode_segment_map(np.array([[2**24]]))


def test_damaged_tiff_files_end_in_one_kind_of_error():
    """Pillow's TIFF reader raises whatever a flipped byte leads to."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)).save(buffer, "TIFF")
    whole, rng, refused = buffer.getvalue(), np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[int(rng.integers(8, 300))] ^= 1 << int(rng.integers(8))
        try:
            codec.decode_image(bytes(data), "photo.tif")
        except codec.CodecError as error:
            refused += 1
            assert str(error).startswith("photo.tif: ")
    assert refused > 20

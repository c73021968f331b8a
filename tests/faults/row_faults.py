"""Faults inside one row: its image, label map, id and lists, and the line of a TSV."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

from ofaseg.data import codec
from ofaseg.utils.run_lengths import text_of_mask
from tests.faults.corpus import HEIGHT, VOCABULARY, WIDTH, fault


def save(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def photo(row: dict) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]))


def stored(row: dict) -> np.ndarray:
    """(H, W) uint8 values of the label map."""
    return np.array(Image.open(io.BytesIO(row["label_map"])))


def with_map(row: dict, values: np.ndarray, **options) -> dict:
    return row | {"label_map": save(Image.fromarray(values), **options)}


def png_header(width: int, height: int, colour: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# ---- images that cannot be read ----


@fault("row", "bad_image", "truncated JPEG", "get the photo or write the row again", column="image")
def image_truncated_jpeg(row):
    return row | {"image": row["image"][:-100]}


@fault("row", "bad_image", "not an image that can be read", column="image")
def image_cut_in_its_header(row):
    return row | {"image": row["image"][:200]}


@fault("row", "bad_image", "truncated PNG", column="image")
def image_truncated_png(row):
    data = save(photo(row))
    return row | {"image": data[: len(data) // 2]}


@fault("row", "bad_image", "damaged", "write the row again", column="image")
def image_bits_flipped(row):
    """A PNG whose checksum tells that its pixels changed on the way."""
    data = bytearray(save(photo(row)))
    data[len(data) // 2] ^= 0xFF
    return row | {"image": bytes(data)}


@fault("row", "bad_image", "not an image", "store a JPEG or PNG file", column="image")
def image_html_page(row):
    return row | {"image": b"<!DOCTYPE html><html><body>404 Not Found</body></html>"}


@fault("row", "bad_image", "not an image", "b'version '", column="image")
def image_lfs_pointer(row):
    return row | {"image": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"}


@fault("row", "bad_field", "empty", "write the row again", column="image", formats=("tsv",))
def image_empty(row):
    return row | {"image": b""}


@fault("row", "bad_field", "no image bytes", "write the row again", column="image", formats=("parquet",))
def image_null(row):
    return row | {"image": b""}


@fault("row", "bad_image", "frames", "store one of them", column="image")
def image_animated(row):
    frames = [photo(row).convert("P"), photo(row).rotate(180).convert("P")]
    return row | {"image": save(frames[0], "GIF", save_all=True, append_images=frames[1:])}


@fault("row", "bad_image", "pixels", "store a", column="image")
def image_pixel_bomb(row):
    return row | {"image": png_header(60_000, 60_000, 2)}


@fault("row", "bad_image", "store", column="image")
def image_zero_width(row):
    return row | {"image": png_header(0, HEIGHT, 2)}


@fault("row", "bad_image", "floating-point", "store 8-bit JPEG or PNG", column="image")
def image_of_floats(row):
    return row | {"image": save(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)), "TIFF")}


# ---- images that are read all the same ----


@fault("row", "converted_image", column="image")
def image_cmyk(row):
    return row | {"image": save(photo(row).convert("CMYK"), "JPEG")}


@fault("row", "converted_image", column="image")
def image_16_bit(row):
    return row | {"image": save(Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)))}


@fault("row", "converted_image", column="image")
def image_palette(row):
    return row | {"image": save(photo(row).convert("P"))}


@fault("row", "converted_image", column="image")
def image_transparent(row):
    image = photo(row).convert("RGBA")
    image.putalpha(100)
    return row | {"image": save(image)}


@fault("row", "converted_image", column="image")
def image_one_bit(row):
    return row | {"image": save(photo(row).convert("1"))}


@fault("row", "converted_image", column="image")
def image_upside_down(row):
    """A phone's EXIF orientation that keeps height and width."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return row | {"image": save(photo(row), "JPEG", exif=exif)}


@fault("row", "")
def image_grey(row):
    return row | {"image": save(photo(row).convert("L"), "JPEG")}


@fault("row", "")
def image_webp(row):
    return row | {"image": save(photo(row), "WEBP")}


# ---- image and map that do not fit ----


@fault("row", "size_mismatch", "must have one size", "EXIF", column="label_map", also=("box_outside",))
def image_rotated_by_exif(row):
    """The map was drawn on the pixels as stored, the photo is turned when it is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return row | {"image": save(photo(row), "JPEG", exif=exif)}


@fault("row", "size_mismatch", "the label map is 12x16", "must have one size", column="label_map")
def map_of_another_size(row):
    return with_map(row, np.ascontiguousarray(stored(row)[::2, ::2]))


@fault("row", "size_mismatch", "the label map is 32x24", column="label_map")
def map_transposed(row):
    return with_map(row, np.ascontiguousarray(stored(row).T))


@fault("row", "swapped_columns", "label map is a JPEG", "store it as PNG", column="label_map")
def image_and_map_exchanged(row):
    return row | {"image": row["label_map"], "label_map": row["image"]}


@fault("row", "no_label_map", "no label map", "leave it out", column="label_map")
def map_missing(row):
    return row | {"label_map": None}


# ---- label maps ----


@fault("row", "bad_label_map", "label map", "write the row again", column="label_map")
def map_truncated(row):
    return row | {"label_map": row["label_map"][:-30]}


@fault("row", "bad_label_map", "JPEG", "compression changes class ids", column="label_map")
def map_jpeg(row):
    return with_map(row, stored(row), format="JPEG")


@fault("row", "bad_label_map", "mode RGB", "convert it to ids", column="label_map")
def map_in_colours(row):
    """Class colours instead of class ids."""
    return with_map(row, np.array(VOCABULARY.palette, np.uint8)[stored(row) % 3])


@fault("row", "bad_label_map", "mode RGBA", column="label_map")
def map_with_alpha(row):
    return row | {"label_map": save(Image.fromarray(stored(row)).convert("RGBA"))}


@fault("row", "bad_label_map", "mode F", "class ids", column="label_map")
def map_of_floats(row):
    return with_map(row, stored(row).astype(np.float32), format="TIFF")


@fault("row", "bad_label_map", "do not fit 16 bits", "map the labels again", column="label_map")
def map_with_negative_values(row):
    return with_map(row, stored(row).astype(np.int32) - 5, format="TIFF")


@fault("row", "bad_label_map", "not an image", column="label_map")
def map_is_text(row):
    return row | {"label_map": b"0 0 0 1 1 2\n0 0 1 1 2 2\n"}


@fault("row", "bad_label_map", "frames", column="label_map")
def map_animated(row):
    other = Image.fromarray(255 - stored(row))
    return row | {"label_map": save(Image.fromarray(stored(row)), "GIF", save_all=True, append_images=[other])}


@fault("row", "bad_label_map", "pixels", column="label_map")
def map_pixel_bomb(row):
    return row | {"label_map": png_header(60_000, 60_000, 0)}


@fault("row", "label_range", "label value 9 in 1 pixels, first at y=5, x=7", "allowed are 0..2", column="label_map", also=("class_count",))
def map_value_outside(row):
    values = stored(row)
    values[5, 7] = 9
    return with_map(row, values)


@fault("row", "label_range", "label value 300", "map the labels again", column="label_map", also=("class_count",))
def map_16_bit_value_outside(row):
    values = stored(row).astype(np.uint16)
    values[0, 0] = 300
    return with_map(row, values)


@fault("row", "no_label", column="label_map")
def map_all_ignored(row):
    return with_map(row, np.full((HEIGHT, WIDTH), 255, np.uint8))


@fault("row", "")
def map_with_palette(row):
    image = Image.fromarray(stored(row), "P")
    image.putpalette([channel for colour in VOCABULARY.palette for channel in colour] + [0] * (768 - 3 * len(VOCABULARY)))
    return row | {"label_map": save(image)}


@fault("row", "")
def map_16_bit(row):
    return with_map(row, stored(row).astype(np.uint16))


@fault("row", "")
def map_one_bit(row):
    return row | {"label_map": save(Image.fromarray(stored(row) == 1))}


# ---- ids, captions, boxes, segments ----


@fault("row", "duplicate_id", column="id")
def id_twice(row):
    return row | {"id": "sample 1"}


@fault("row", "bad_id", column="id")
def id_with_control_character(row):
    return row | {"id": "sample\x07 3"}


@fault("row", "bad_id", column="id")
def id_empty(row):
    return row | {"id": ""}


@fault("row", "empty_text", column="captions")
def caption_blank(row):
    return row | {"captions": ["coloured blocks", "  "]}


@fault("row", "bad_box", column="boxes")
def box_reversed(row):
    return row | {"boxes": [row["boxes"][0] | {"box": [10.0, 12.0, 2.0, 2.0]}]}


@fault("row", "box_outside", column="boxes")
def box_outside_the_image(row):
    return row | {"boxes": [row["boxes"][0] | {"box": [2.0, 2.0, 500.0, 12.0]}]}


@fault("row", "class_id_range", column="boxes")
def box_of_unknown_class(row):
    return row | {"boxes": [row["boxes"][0] | {"class_id": 3}]}


@fault("row", "class_id_range", column="segments")
def segment_of_unknown_class(row):
    return row | {"segments": [row["segments"][0] | {"class_id": -1}, row["segments"][1]]}


@fault("row", "segments_mismatch", column="segment_map")
def segments_without_map(row):
    return row | {"segment_map": None}


@fault("row", "segments_mismatch", column="segments")
def segment_map_without_segments(row):
    return row | {"segments": []}


@fault("row", "segments_mismatch", column="segments")
def segment_ids_differ(row):
    return row | {"segments": [row["segments"][0], row["segments"][1] | {"id": 7}]}


@fault("row", "segments_mismatch", column="segments")
def segment_listed_twice(row):
    return row | {"segments": [*row["segments"], row["segments"][0]]}


@fault("row", "size_mismatch", column="segment_map")
def segment_map_of_another_size(row):
    return row | {"segment_map": codec.encode_segment_map(codec.decode_segment_map(row["segment_map"])[::2])}


@fault("row", "bad_label_map", column="segment_map")
def segment_map_of_one_channel(row):
    return row | {"segment_map": row["label_map"]}


@fault("row", "bad_mask", column="instances")
def mask_of_another_size(row):
    return row | {"instances": [row["instances"][0] | {"mask": text_of_mask(np.ones((WIDTH, WIDTH), dtype=bool))}]}


@fault("row", "bad_mask", column="instances")
def mask_cut(row):
    return row | {"instances": [row["instances"][0] | {"mask": row["instances"][0]["mask"] + "P"}]}


@fault("row", "class_id_range", column="instances")
def object_of_unknown_class(row):
    return row | {"instances": [row["instances"][0] | {"class_id": 3}]}


# ---- lines of a TSV ----


def change_field(line: bytes, number: int, change) -> bytes:
    fields = line.split(b"\t")
    fields[number] = change(fields[number])
    return b"\t".join(fields)


@fault("line", "bad_row", "line 4 is empty", "remove it")
def line_empty(line):
    return b""


@fault("line", "bad_row", "line 4 has 7 columns, expected 8", "write the file again")
def line_lacks_a_column(line):
    return line.rpartition(b"\t")[0]


@fault("line", "bad_row", "line 4 has 9 columns, expected 8")
def line_has_another_column(line):
    return line + b"\t1"


@fault("line", "bad_row", "line 4 has 15 columns, expected 8")
def line_break_lost(line):
    """Two rows in one line."""
    return line + line


@fault("line", "bad_row", "line 4 has 1 columns, expected 8")
def line_cut_in_its_image(line):
    return line[:200]


@fault("line", "bad_field", "not valid base64", "write the row again", column="image")
def base64_with_foreign_characters(line):
    return change_field(line, 0, lambda field: field[:40] + b"!?" + field[42:])


@fault("line", "bad_field", "not valid base64", column="label_map")
def base64_with_blanks(line):
    return change_field(line, 1, lambda field: field[:20] + b"   " + field[20:])


@fault("line", "bad_field", "not valid base64", "write the row again", column="label_map")
def base64_of_impossible_length(line):
    return change_field(line, 1, lambda field: field.rstrip(b"=")[: len(field) // 4 * 4 - 7])


@fault("line", "bad_field", "NUL", "write the row again", column="image")
def nul_bytes(line):
    """What an interrupted copy leaves in a file."""
    return change_field(line, 0, lambda field: field[:100] + bytes(len(field) - 100))


@fault("line", "")
def base64_url_safe(line):
    return change_field(line, 0, lambda field: base64.urlsafe_b64encode(base64.b64decode(field)))


@fault("line", "")
def base64_without_padding(line):
    return change_field(line, 0, lambda field: codec.b64encode(base64.b64decode(field).ljust(9000, b"\0") + b"\0").rstrip(b"="))


@fault("line", "bad_field", "utf-8", "write the row again", column="id")
def id_in_latin_1(line):
    return change_field(line, 2, lambda field: "Straße".encode("latin-1"))


@fault("line", "bad_field", "write the row again", column="captions")
def captions_cut(line):
    return change_field(line, 3, lambda field: field[:-2])


@fault("line", "bad_field", "write the row again", column="boxes")
def boxes_as_text(line):
    return change_field(line, 4, lambda field: b"2 2 10 12 block")


@fault("line", "bad_field", "key 'box' is missing", "write the row again", column="boxes")
def boxes_with_other_keys(line):
    return change_field(line, 4, lambda field: field.replace(b'"box"', b'"bbox"'))


@fault("line", "bad_field", "four finite numbers", column="boxes")
def box_not_a_number(line):
    return change_field(line, 4, lambda field: field.replace(b"10.0", b"NaN"))


@fault("line", "bad_field", "write the row again", column="segments")
def segments_without_area(line):
    return change_field(line, 6, lambda field: field.replace(b'"area"', b'"size"'))


@fault("line", "bad_image", "not an image", "store a JPEG or PNG file", column="image", slow=True)
def line_of_100_megabytes(line):
    return change_field(line, 0, lambda field: b"A" * 100 * 2**20)

"""The contact sheet: the samples it shows, at a size people can look at."""

import numpy as np
from PIL import Image

from data_prep.contact_sheet import MAX_SAMPLES, sheet_path, write_contact_sheet
from ofaseg.data import codec
from ofaseg.data.shards import ShardWriter
from ofaseg.vocabulary import ClassVocabulary

VOCABULARY = ClassVocabulary(names=("one", "two"), palette=((255, 0, 0), (0, 0, 255)))


def write_rows(out, photos, label_maps, vocabulary=VOCABULARY):
    columns = ("image", "id") if vocabulary is None else ("image", "label_map", "id")
    with ShardWriter(out, "train", vocabulary, columns) as writer:
        for i, (photo, label_map) in enumerate(zip(photos, label_maps)):
            row = {"id": f"photo {i} " + "x" * 40 * i, "image": codec.encode_image(photo)}
            writer.write(row if label_map is None else row | {"label_map": codec.encode_image(label_map)})
    write_contact_sheet(out, "train", vocabulary)
    with Image.open(sheet_path(out, "train")) as sheet:
        return np.asarray(sheet.convert("RGB"))


def test_photo_beside_its_coloured_map(tmp_path):
    """A black photo whose left half is class one and right half class two: black, then red and blue."""
    label_map = np.zeros((90, 120), np.uint8)
    label_map[:, 60:] = 1
    sheet = write_rows(tmp_path, [np.zeros((90, 120, 3), np.uint8)], [label_map]).astype(int)
    photo, left, right = sheet[50, 40], sheet[50, 6 + 122 + 30], sheet[50, 6 + 122 + 90]
    assert photo.max() == 0 and left[0] > 100 > left[2] and right[2] > 100 > right[0]


def test_evenly_spread_samples(tmp_path):
    """60 photos, each brighter than the one before: 24 are shown, in order, from the first to the last."""
    photos = [np.full((100, 100, 3), 4 * i, np.uint8) for i in range(60)]
    sheet = write_rows(tmp_path, photos, [None] * 60, None)
    tile_height, tile_width = 100 + 18 + 6, 100 + 6
    shown = [int(sheet[6 + tile_height * (k // 4) + 50, 6 + tile_width * (k % 4) + 50, 0]) for k in range(MAX_SAMPLES)]
    assert shown == sorted(set(shown)) and (shown[0], shown[-1]) == (0, 236)


def test_large_and_tiny_photos_fit(tmp_path):
    photos = [np.zeros((900, 30, 3), np.uint8), np.zeros((3, 4, 3), np.uint8)]
    sheet = write_rows(tmp_path, photos, [np.zeros((900, 30), np.uint8), None])
    assert sheet.shape[0] < 400 and sheet.shape[1] < 800

"""CamVid: both layouts, values, and errors that name the file."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep import camvid
from data_prep.source import SourceError
from ofaseg.data import codec
from ofaseg.vocabulary import IGNORE_INDEX


def write_raw(root, split="train", stems=("b_2", "a_1"), layout="pack", height=6, width=13):
    """A raw split; label column x holds class x mod 11 except the last, which holds void; returns the label array."""
    images, labels = (root / "images" / split, root / "labels" / split) if layout == "pack" else (root / split, root / f"{split}annot")
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    values = np.tile(np.arange(width, dtype=np.uint8) % 11, (height, 1))
    values[:, -1] = 255 if layout == "pack" else 11
    for k, stem in enumerate(stems):
        photo = np.full((height, width, 3), 40 * k, np.uint8)
        Image.fromarray(photo).save(images / f"{stem}.{'jpg' if layout == 'pack' else 'png'}")
        Image.fromarray(values).save(labels / f"{stem}.png")
    (root / f"{split}.txt").write_text("\n".join(stems if layout == "pack" else [f"/x/{s}.png /y/{s}.png" for s in stems]) + "\n")
    return values


@pytest.mark.parametrize("layout", ["pack", "segnet"])
def test_samples(tmp_path, layout):
    values = write_raw(tmp_path, layout=layout)
    samples = list(camvid.CamVidSource(tmp_path, "train"))
    assert [s["id"] for s in samples] == ["b_2", "a_1"]  # the list's order
    expected = values.astype(np.int32)
    expected[:, -1] = IGNORE_INDEX
    for sample in samples:
        np.testing.assert_array_equal(sample["label_map"], expected)
        assert codec.decode_image(sample["image"]).shape == (6, 13, 3)


def test_photo_bytes_are_kept(tmp_path):
    write_raw(tmp_path)
    first = camvid.CamVidSource(tmp_path, "train")[0]
    assert first["image"] == (tmp_path / "images" / "train" / "b_2.jpg").read_bytes()


def test_files_of_a_sample(tmp_path):
    write_raw(tmp_path)
    source = camvid.CamVidSource(tmp_path, "train")
    assert source.files(0) == (str(tmp_path / "images/train/b_2.jpg"), str(tmp_path / "labels/train/b_2.png"))
    assert source.name(1) == str(tmp_path / "images/train/a_1.jpg")


def test_without_a_list_names_are_sorted(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "train.txt").unlink()
    assert camvid.list_stems(tmp_path, "train") == ["a_1", "b_2"]


def test_a_label_map_without_its_photo_is_named(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "images" / "train" / "b_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="b_2.jpg .or .png.: photo not found; copy it, or take the name out of .*train.txt"):
        camvid.CamVidSource(tmp_path, "train")[0]
    (tmp_path / "train.txt").unlink()
    source = camvid.CamVidSource(tmp_path, "train")
    assert source[0]["id"] == "a_1" and len(source) == 2
    with pytest.raises(FileNotFoundError, match="b_2.jpg .or .png.: photo not found; copy it, or remove .*labels/train/b_2.png"):
        source[1]


def test_vocabulary():
    vocabulary = camvid.vocabulary()
    assert len(vocabulary) == 11 and vocabulary.names[0] == "sky" and vocabulary.names[10] == "bicyclist"
    assert [name for name, thing in zip(vocabulary.names, vocabulary.thing) if thing] == ["car", "pedestrian", "bicyclist"]
    assert vocabulary.ignore_label == 255


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected .*images/train .*labels/train"):
        camvid.CamVidSource(tmp_path, "train")[0]
    with pytest.raises(ValueError, match="no split 'valid'; choose from train, val, test"):
        camvid.CamVidSource(tmp_path, "valid")
    write_raw(tmp_path)
    label = tmp_path / "labels" / "train" / "b_2.png"
    Image.fromarray(np.full((6, 10), 12, np.uint8)).save(label)
    with pytest.raises(ValueError, match="b_2.png: label value 12; CamVid has 0..10"):
        camvid.CamVidSource(tmp_path, "train")[0]
    label.write_bytes(label.read_bytes()[:45])
    with pytest.raises(ValueError, match="b_2.png: damaged"):
        camvid.CamVidSource(tmp_path, "train")[0]
    Image.fromarray(np.zeros((6, 10, 3), np.uint8)).save(label)
    with pytest.raises(ValueError, match="one channel of class ids"):
        camvid.CamVidSource(tmp_path, "train")[0]
    label.unlink()
    with pytest.raises(FileNotFoundError, match="b_2.png: label map not found"):
        camvid.CamVidSource(tmp_path, "train")[0]
    (tmp_path / "images" / "train" / "b_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="b_2.jpg .or .png.: photo not found"):
        camvid.CamVidSource(tmp_path, "train")[0]


def test_real_pack(real_data):
    """Counts and pixel shares that the data pack documents (README, camvid)."""
    root = real_data / "camvid"
    assert [len(camvid.CamVidSource(root, split)) for split in camvid.SPLITS] == [367, 101, 233]
    sample = camvid.CamVidSource(root, "val")[0]
    assert sample["label_map"].shape == (360, 480) and codec.image_size(sample["image"]) == (360, 480)
    pixels = np.zeros(12)
    train = camvid.CamVidSource(root, "train")
    for sample in (train[i] for i in range(0, len(train), 6)):
        pixels += np.bincount(np.where(sample["label_map"] < 0, 11, sample["label_map"]).ravel(), minlength=12)
    share = 100 * pixels / pixels.sum()
    documented = [16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3, 4.0]
    np.testing.assert_allclose(share, documented, atol=1.5)


def test_a_label_map_of_impossible_size_is_named(tmp_path):
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    with pytest.raises(SourceError, match="bomb.png.*store a smaller image"):
        camvid.read_label_map(path)

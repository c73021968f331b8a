"""Images by class from folders, Parquet and saved datasets, in one order and with the same labels."""

import numpy as np
import pytest

from ofaseg.data import codec
from ofaseg.data.labelled_images import open_labelled
from ofaseg.data.rows import ShardError

ROWS = (("cat", 10), ("cat", 20), ("dog", 30))


def png(value: int) -> bytes:
    return codec.encode_image(np.full((4, 4, 3), value, np.uint8), "png")


def found(images):
    return [(images.labels[i], int(codec.decode_image(images.read(i)).mean())) for i in range(len(images))]


def test_folders_by_class(tmp_path):
    for k, (name, value) in enumerate(ROWS):
        (tmp_path / "validation" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "validation" / name / f"{k}.PNG").write_bytes(png(value))
    (tmp_path / "validation" / "cat" / "notes.md").write_text("no image")
    images = open_labelled(tmp_path, "val")
    assert found(images) == list(ROWS) and images.location(2).endswith("dog/2.PNG")


@pytest.mark.parametrize("named", [True, False])
def test_tables(tmp_path, monkeypatch, named):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["cat", "dog"]
    labels = datasets.ClassLabel(names=names) if named else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "fine_label": labels, "text": datasets.Value("string")})
    rows = {"image": [{"bytes": png(value)} for _, value in ROWS], "text": ["x"] * 3}
    rows["fine_label"] = [names.index(name) if named else name for name, _ in ROWS]
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"validation": table}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    table.to_parquet(str(tmp_path / "files" / "val-00000-of-00001.parquet"))
    assert found(open_labelled(tmp_path / "saved", "val")) == found(open_labelled(tmp_path / "files", "val")) == list(ROWS)
    with pytest.raises(ShardError, match="no column 'breed'; it has image, .*Name one by --label-column"):
        open_labelled(tmp_path / "saved", "val", label_column="breed")
    with pytest.raises(ShardError, match="no split 'train'"):
        open_labelled(tmp_path / "saved", "train")


def test_what_there_is_not_is_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ShardError, match=r"no images of split 'train' \(pictures\); give a folder <split>/<class>"):
        open_labelled(tmp_path, "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ShardError, match="no image one folder below it"):
        open_labelled(tmp_path, "train")

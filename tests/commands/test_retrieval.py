"""`ofaseg retrieval`: recalls against ranks counted one by one, on one process and two, with bad rows, from shards and CSV lists."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ofaseg.checkpoints import load_dual_encoder
from ofaseg.cli import main
from ofaseg.data import codec
from ofaseg.data.shards import ShardWriter
from ofaseg.evaluation.report import retrieval_table
from ofaseg.vocabulary import ClassVocabulary
from tests.conftest import ROOT
from tests.toy_simseg import WORDS, write_simseg

PHOTOS = 23


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_simseg(tmp_path_factory.mktemp("simseg"))


def toy_pairs():
    """(photo (H, W, 3) uint8, captions) of `PHOTOS` photos of several sizes, one to three captions each."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(PHOTOS):
        height, width = rng.integers(30, 60, 2)
        photo = np.repeat(np.repeat(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), 12, 0), 12, 1)[:height, :width]
        texts = tuple(" ".join(rng.choice(WORDS[:-1], rng.integers(1, 9))) for _ in range(rng.integers(1, 4)))
        pairs.append((photo, texts))
    return pairs


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    with ShardWriter(str(root), "val", ClassVocabulary(("x",), source="toy"), ["image", "captions", "id"], format="parquet") as writer:
        for k, (photo, texts) in enumerate(toy_pairs()):
            writer.write({"id": f"p{k}", "image": codec.encode_image(photo, "png"), "captions": list(texts)})
    return root


def retrieval(checkpoint, data, out, *arguments):
    status = main(["retrieval", str(checkpoint), str(data), "--device", "cpu", "--out", str(out), *arguments])
    return status, json.loads((out / "retrieval.json").read_text()) if status != 2 else None


def naive_scores(checkpoint, pairs, resize=36, crop=32):
    """The six recalls, photo by photo and caption by caption; a square resize, then the middle."""
    model, task = load_dual_encoder(checkpoint)
    first = (resize - crop) // 2
    photos, texts, owners = [], [], []
    with torch.no_grad():
        for k, (photo, captions) in enumerate(pairs):
            pixels = np.asarray(Image.fromarray(photo).resize((resize, resize), Image.Resampling.BILINEAR))
            middle = torch.from_numpy(pixels[first : first + crop, first : first + crop].transpose(2, 0, 1).copy())[None]
            photos.append(model.embed_image(middle)[0])
            texts += [model.embed_text(*task.text_tokenizer([caption], 12))[0] for caption in captions]
            owners += [k] * len(captions)
    scores = {}
    for name, queries, items, wanted in (("I2T", photos, texts, owners), ("T2I", texts, photos, list(range(len(photos))))):
        ranks = []
        for q, query in enumerate(queries):
            mine = q if name == "I2T" else owners[q]
            order = sorted(range(len(items)), key=lambda i: -float(query @ items[i]))
            ranks.append(next(place for place, i in enumerate(order) if wanted[i] == mine))
        scores |= {f"{name}-R@{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return scores


def assert_scores(found, expected):
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key
    assert found["RSUM"] == pytest.approx(sum(expected.values()))


def test_scores_files_and_table(checkpoint, shards, tmp_path, capsys):
    status, found = retrieval(checkpoint, shards, tmp_path, "--batch-size", "4", "--name", "toy")
    assert status == 0 and (found["images"], found["resize"], found["crop"]) == (PHOTOS, 36, 32)
    assert found["captions"] == sum(len(texts) for _, texts in toy_pairs())
    expected = naive_scores(checkpoint, toy_pairs())
    assert len(set(expected.values())) > 3  # so that swapped directions would show
    assert_scores(found, expected)
    row = (tmp_path / "retrieval.md").read_text().splitlines()[2]
    assert row in capsys.readouterr().out
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "toy" and cells[1] == f"{100 * found['I2T-R@1']:.1f}" and cells[7] == f"{100 * found['RSUM']:.1f}"


def test_another_crop_and_a_limit(checkpoint, shards, tmp_path):
    _, found = retrieval(checkpoint, shards, tmp_path, "--resize", "50", "--crop", "40", "--limit", "3")
    rows = [0, PHOTOS // 2, PHOTOS - 1]
    assert_scores(found, naive_scores(checkpoint, [toy_pairs()[row] for row in rows], 50, 40))


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(checkpoint, shards, tmp_path):
    _, alone = retrieval(checkpoint, shards, tmp_path / "alone")
    script = "from ofaseg.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = ["retrieval", checkpoint, str(shards), "--device", "cpu", "--batch-size", "5", "--out", str(tmp_path / "shared")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost", "MASTER_PORT": "29713", "WORLD_SIZE": "2"}
    ranks = [subprocess.Popen([sys.executable, "-c", script, *command], env=environment | {"RANK": str(k)}) for k in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    shared = json.loads((tmp_path / "shared" / "retrieval.json").read_text())
    different = {key for key in alone if alone[key] != pytest.approx(shared[key])} - {"seconds"}
    assert not different


def test_a_csv_list_with_bad_rows(checkpoint, tmp_path, capsys):
    """A photo that cannot be decoded is counted and left out, with its captions."""
    images = tmp_path / "images"
    images.mkdir()
    pairs = toy_pairs()[:8]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for k, (photo, texts) in enumerate(pairs):
            Image.fromarray(photo).save(images / f"{k}.png")
            rows.writerows([f"{k}.png", text] for text in texts)
    (images / "3.png").write_bytes(b"broken")
    status, found = retrieval(checkpoint, f"{tmp_path / 'list.csv'}:{images}", tmp_path / "out", "--strict")
    assert status == 1 and found["images"] == 7 and len(found["bad_rows"]) == 1 and "list.csv, row 8, column image" in found["bad_rows"][0]
    assert "1 rows left out" in capsys.readouterr().out
    assert_scores(found, naive_scores(checkpoint, pairs[:3] + pairs[4:]))


def test_columns_by_name(checkpoint, tmp_path, capsys, monkeypatch):
    """A table with other column names; without the column of ids each row is a photo of its own, and a note says so."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pairs = toy_pairs()[:8]
    rows = [(f"p{k}", codec.encode_image(photo, "png"), text) for k, (photo, texts) in enumerate(pairs) for text in texts]
    pq.write_table(pa.table(dict(zip(("photo", "pixels", "title"), map(list, zip(*rows))))), tmp_path / "x.parquet")
    columns = ("--image-column", "pixels", "--caption-columns", "title")
    _, found = retrieval(checkpoint, tmp_path / "x.parquet", tmp_path / "a", *columns, "--image-id-column", "photo")
    assert_scores(found, naive_scores(checkpoint, pairs))
    assert "note" not in capsys.readouterr().err
    assert [found[name] for name in ("image_column", "caption_columns", "image_id_column")] == ["pixels", "title", "photo"]
    _, found = retrieval(checkpoint, tmp_path / "x.parquet", tmp_path / "b", *columns)
    assert found["images"] == len(rows)
    assert "note: no column says which rows are of one photo" in capsys.readouterr().err


def test_what_cannot_work_is_named(checkpoint, shards, tmp_path, capsys):
    assert retrieval(checkpoint, tmp_path / "nothing", tmp_path)[0] == 2
    assert retrieval(checkpoint, shards, tmp_path, "--crop", "30")[0] == 2
    assert retrieval(ROOT / "ofaseg" / "assets" / "shapes" / "segofa_nano.safetensors", shards, tmp_path)[0] == 2
    errors = capsys.readouterr().err
    assert "nothing" in errors and "multiple of the patch (8)" in errors and "not a dual encoder" in errors


def test_the_table_is_in_percent():
    published = {f"I2T-R@{k}": v for k, v in zip((1, 5, 10), (0.786, 0.938, 0.969))}
    published |= {f"T2I-R@{k}": v for k, v in zip((1, 5, 10), (0.616, 0.852, 0.912))} | {"RSUM": 5.073, "images": 1000, "captions": 5000}
    row = retrieval_table([("ViT-B", published)]).splitlines()[-1]
    assert row == "| ViT-B | 78.6 | 93.8 | 96.9 | 61.6 | 85.2 | 91.2 | 507.3 | 1000 | 5000 |"

"""`ofaseg predict`: files, folders, lists, URLs, bad photos, and agreement with evaluation."""

import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image

from ofaseg.cli import main
from ofaseg.commands.predict import expand, output_names
from ofaseg.evaluation.pictures import read_index_png
from tests.toy import toy_label_map, toy_photo


@pytest.fixture
def photos(tmp_path):
    """Three readable photos and a broken one; `a.png` stands in two folders."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "deep/a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(toy_photo(rng, toy_label_map(rng, 36, 50))).save(path, quality=95)
    (tmp_path / "photos" / "notes.md").write_text("no photo")
    return tmp_path / "photos"


def predict(out, *arguments):
    return main(["predict", *map(str, arguments), "--checkpoint", "model.pt", "--device", "cpu", "--out", str(out)])


def test_a_folder_becomes_overlays_index_maps_and_areas(toy, photos, tmp_path):
    assert predict(tmp_path / "out", photos, "--class-names", "red, green, blue") == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(f"{stem}{end}" for stem in ("a", "b", "a-2") for end in ("_overlay.png", "_index.png", ".json"))
    label_map = read_index_png(tmp_path / "out" / "a_index.png")
    about = json.loads((tmp_path / "out" / "a.json").read_text())
    assert label_map.shape == (36, 50) == (about["height"], about["width"])
    for area in about["areas"]:
        assert area["pixels"] == int((label_map == area["class_id"]).sum()) and area["name"] == ["red", "green", "blue"][area["class_id"]]
    assert sum(area["pixels"] for area in about["areas"]) == 36 * 50
    truth = np.asarray(Image.open(photos / "a.png"))[..., :3].argmax(-1)
    assert (truth == label_map).mean() > 0.8
    with Image.open(tmp_path / "out" / "a_overlay.png") as overlay:
        assert overlay.height > 36 and overlay.mode == "RGB"


def test_bad_photos_are_reported_and_the_others_go_on(toy, photos, tmp_path, capsys, caplog):
    (photos / "c.png").write_bytes(b"no image at all")
    assert predict(tmp_path / "out", photos) == 0
    assert "3 of 4 photos" in capsys.readouterr().out and "c.png" in caplog.text
    assert not (tmp_path / "out" / "c.json").exists() and (tmp_path / "out" / "a-2.json").exists()
    assert predict(tmp_path / "out", photos, "--strict") == 1
    assert predict(tmp_path / "out", photos / "c.png") == 1


def test_lists_and_urls(toy, photos, tmp_path, caplog):
    (photos / "list.txt").write_text(f"# photos\na.png\n\n{(photos / 'b.jpg').as_uri()}\n{photos / 'deep' / 'a.png'}\n")
    assert list(expand([str(photos / "list.txt")])) == [str(photos / "a.png"), (photos / "b.jpg").as_uri(), str(photos / "deep" / "a.png")]
    assert predict(tmp_path / "out", photos / "list.txt") == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 3
    assert predict(tmp_path / "out", "http://127.0.0.1:9/x.jpg") == 1
    assert "cannot be fetched" in caplog.text and "give its path instead" in caplog.text


def test_http(toy, photos, tmp_path, caplog):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(photos), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert predict(tmp_path / "out", f"{address}/b.jpg", f"{address}/missing.jpg") == 0
        server.shutdown()
    assert (tmp_path / "out" / "b_index.png").is_file() and "404" in caplog.text


def test_nothing_to_do_is_an_error(toy, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "out", tmp_path / "empty") == 2 and predict(tmp_path / "out", tmp_path / "absent.jpg") == 2
    errors = capsys.readouterr().err
    assert "no photo in" in errors and "no such file or folder" in errors


def test_names_of_results():
    assert output_names(["x/a.jpg", "y/A.png", "http://h/a.png?size=3", "file:///d/b%20c.jpg", "http://h/"]) == [
        "a",
        "A-2",
        "a-3",
        "b c",
        "image",
    ]


def test_a_photo_too_large_for_memory_costs_only_itself(tmp_path, monkeypatch, caplog):
    """The photos after one that runs out of memory are still segmented."""
    import argparse
    from types import SimpleNamespace

    import torch

    import ofaseg.checkpoints
    from ofaseg.commands import predict

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")

    def one(source, out, model, task, post, tasks):
        if str(source).endswith("a.png"):
            raise torch.OutOfMemoryError("no room")
        return {"semantic": ["cat 100.0 %"]}

    task = SimpleNamespace(post_process=lambda **changes: None, output_kinds=("semantic",))
    monkeypatch.setattr(ofaseg.checkpoints, "load_model", lambda *args, **kwargs: (torch.nn.Identity(), task))
    monkeypatch.setattr(predict, "predict_one", one)
    arguments = [str(tmp_path), "--checkpoint", "x.pt", "--out", str(tmp_path / "out"), "--device", "cpu"]
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    assert predict.run(parser.parse_args(arguments)) == 0
    assert "too large for the memory of cpu" in caplog.text

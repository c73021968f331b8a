"""From a folder of photos to a report with the script of the README, on toy photos."""

import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.browser import CHROMIUM, open_page
from tests.conftest import ROOT
from tests.toy import NAMES, toy_label_map, toy_photo

pytestmark = pytest.mark.slow

# smaller photos and a shorter run than the script's, for time
SHORT = ["--patch-image-size", "48", "--orig-patch-image-size", "48", "--max-update", "30", "--save-interval-updates", "30"]


def write_folder(root, count: int) -> None:
    """Photos with label maps (255 = no label) and class names, as a user would have them."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for k in range(count):
        label_map = toy_label_map(rng, 48, 64)
        Image.fromarray(toy_photo(rng, label_map)).save(root / "images" / f"photo {k}.jpg", quality=95)
        Image.fromarray(np.where(label_map < 0, 255, label_map).astype(np.uint8)).save(root / "labels" / f"photo {k}.png")


def own_folder(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("CHECKPOINT", "BPE_DIR", "DATA", "IMAGES", "LABELS")}
    environment |= {"FOLDER": str(tmp_path / "my photos"), "OUT": str(tmp_path / "out"), "NGPU": "0"}
    script = ROOT / "run_scripts" / "ifseg" / "own_folder.sh"
    return subprocess.run([script, *SHORT, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)


def test_a_folder_becomes_a_model_a_report_and_a_gallery(tmp_path):
    write_folder(tmp_path / "my photos", 24)
    done = own_folder(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    out = tmp_path / "out"
    scores = json.loads((out / "evaluation" / "scores.json").read_text())
    assert scores["class_names"] == list(NAMES) and scores["mIoU"] > 2 * scores["constant"]["mIoU"]
    page = (out / "report.html").read_text(encoding="utf-8")
    for word in ("Segmentation of my photos", "Best photos", "Confusion", "segofa_nano", "loss", "Data"):
        assert word in page, word
    gallery = (out / "gallery" / "index.html").read_text(encoding="utf-8")
    assert gallery.count('class="row card"') + (out / "gallery" / "page-002.html").read_text().count('class="row card"') == 24
    if CHROMIUM:
        assert 'class="example card ready"' in open_page(out / "report.html")


def test_a_folder_with_a_missing_label_map_is_not_trained_on(tmp_path):
    write_folder(tmp_path / "my photos", 6)
    (tmp_path / "my photos" / "labels" / "photo 3.png").unlink()
    done = own_folder(tmp_path)
    assert done.returncode != 0 and "photo 3" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "checkpoint_best.pt").exists()

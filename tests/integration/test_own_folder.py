"""From a folder of photos to a report with the script of the README, on toy photos."""

import json
import os
import subprocess

import pytest

from tests.browser import CHROMIUM, open_page
from tests.conftest import ROOT
from tests.toy import NAMES, write_toy_folder

pytestmark = pytest.mark.slow

# smaller photos and a shorter run than the script's, for time
SHORT = ["--patch-image-size", "48", "--orig-patch-image-size", "48", "--max-update", "30", "--save-interval-updates", "30"]


def own_folder(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("CHECKPOINT", "BPE_DIR", "DATA", "IMAGES", "LABELS")}
    environment |= {"FOLDER": str(tmp_path / "my photos"), "OUT": str(tmp_path / "out"), "NGPU": "0"}
    script = ROOT / "run_scripts" / "ifseg" / "own_folder.sh"
    return subprocess.run([script, *SHORT, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)


def test_a_folder_becomes_a_model_a_report_and_a_gallery_and_another_folder_does_not_continue_it(tmp_path):
    write_toy_folder(tmp_path / "my photos", 24)
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

    (tmp_path / "my photos").rename(tmp_path / "other photos")
    write_toy_folder(tmp_path / "my photos", 12)
    done = own_folder(tmp_path)
    assert done.returncode != 0 and "set OUT to a new folder" in done.stderr, done.stdout[-2000:]
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_a_folder_with_a_missing_label_map_is_not_trained_on(tmp_path):
    write_toy_folder(tmp_path / "my photos", 6)
    (tmp_path / "my photos" / "labels" / "photo 3.png").unlink()
    done = own_folder(tmp_path)
    assert done.returncode != 0 and "photo 3" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "checkpoint_best.pt").exists()

"""No false alarm on the configurations of this project; the faults are in the corpus."""

from pathlib import Path

import pytest

from ofaseg.doctor.examine import examine

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = [*(ROOT / "run_scripts").rglob("*.sh"), *(ROOT / "ofaseg" / "config").glob("*.yaml")]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_own_configurations_are_clean(path):
    assert examine([path], quiet=True).found == []


def test_options_of_a_script_are_compared_at_all(tmp_path):
    """The clean scripts would pass a check that looks at nothing."""
    text = (ROOT / "run_scripts" / "ifseg" / "shapes.sh").read_text()
    (tmp_path / "run.sh").write_text(text.replace("--epoch-size", "--epochsize").replace("segofa_nano --", "segofa_small --"))
    assert [item.column for item in examine([tmp_path / "run.sh"], quiet=True).found] == ["model"]
    (tmp_path / "run.sh").write_text(text.replace("--epoch-size", "--epochsize"))
    assert [item.column for item in examine([tmp_path / "run.sh"], quiet=True).found] == ["epochsize"]

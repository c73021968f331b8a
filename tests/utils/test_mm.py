"""The optional door to mmsegmentation."""

import subprocess
import sys

import pytest

from ofaseg.utils.mm import _MissingOperators, has_mmseg, require_mmseg


def test_operators_can_be_looked_up_but_not_run():
    operators = _MissingOperators("mmcv._ext")
    with pytest.raises(ImportError, match="'nms' needs the full mmcv"):
        operators.nms(1)
    with pytest.raises(AttributeError):
        _ = operators.__path__


@pytest.mark.skipif(not has_mmseg(), reason="extra mm is not installed")
def test_names_and_palettes_are_reachable():
    mmseg = require_mmseg()
    from mmseg.utils import get_classes, get_palette

    assert mmseg.__name__ == "mmseg" and len(get_classes("ade20k")) == len(get_palette("ade20k")) == 150


def test_without_the_packages_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ofaseg.utils.mm.has_mmseg", lambda: False)
    with pytest.raises(ImportError, match=r"ofaseg\[mm\]"):
        require_mmseg()


def test_the_door_opens_nothing_by_itself():
    code = "import sys, importlib.util as u; s = u.spec_from_file_location('mm', 'ofaseg/utils/mm.py'); m = u.module_from_spec(s); "
    code += "s.loader.exec_module(m); sys.exit(any(n in sys.modules for n in ('mmcv', 'mmseg', 'mmcv._ext')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

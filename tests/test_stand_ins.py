"""Modules that are imported when something in them is used."""

import importlib
import sys

import pytest

from ofaseg.stand_ins import LateImports, StandIn, standing_in


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """`large_toy` with a part `scores`, and two users of them; nothing of these is imported before or after."""
    (tmp_path / "large_toy").mkdir()
    (tmp_path / "large_toy" / "__init__.py").write_text("name = 'large'\n")
    (tmp_path / "large_toy" / "scores.py").write_text("def double(x, plus=0):\n    return 2 * x + plus\n")
    user = "import large_toy\nfrom large_toy import scores as late_scores\nfrom large_toy.scores import double\n"
    (tmp_path / "late_user.py").write_text(user)
    (tmp_path / "early_user.py").write_text(user)
    (tmp_path / "doubtful_user.py").write_text("try:\n    import no_such_toy\nexcept ImportError:\n    no_such_toy = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [LateImports({"late_user": LARGE, "doubtful_user": ("no_such_toy",)}), *sys.meta_path])
    yield
    for name in [*LARGE, "late_user", "early_user", "doubtful_user"]:
        sys.modules.pop(name, None)


LARGE = ("large_toy", "large_toy.scores")


def test_the_import_waits_for_the_first_use(packages):
    user = importlib.import_module("late_user")
    assert not set(LARGE) & set(sys.modules)
    assert isinstance(user.large_toy, StandIn) and isinstance(user.late_scores, StandIn)
    assert user.double(3, plus=1) == 7 and set(LARGE) <= set(sys.modules)
    assert user.late_scores.double(4) == 8 and user.large_toy.name == "large"
    assert importlib.import_module("large_toy").scores.double is sys.modules["large_toy.scores"].double


def test_other_modules_import_as_ever(packages):
    user = importlib.import_module("early_user")
    assert not isinstance(user.large_toy, StandIn) and user.double is sys.modules["large_toy.scores"].double


def test_what_is_imported_already_is_itself(packages):
    scores = importlib.import_module("large_toy.scores")
    user = importlib.import_module("late_user")
    assert user.double is scores.double and user.large_toy is sys.modules["large_toy"]


def test_a_missing_package_is_missing(packages):
    assert importlib.import_module("doubtful_user").no_such_toy is None


def test_stand_ins_are_taken_away_after_an_error(packages):
    with pytest.raises(ZeroDivisionError), standing_in(LARGE):
        assert isinstance(sys.modules["large_toy"], StandIn)
        raise ZeroDivisionError
    assert not set(LARGE) & set(sys.modules)


def test_an_unknown_name_is_an_error_when_it_is_used(packages):
    user = importlib.import_module("late_user")
    with pytest.raises(AttributeError, match="no_such_name"):
        user.late_scores.no_such_name()
    assert not hasattr(user.late_scores, "__no_such_name__")

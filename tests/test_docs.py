"""The Python examples of the documentation run, and its tables name what the code has."""

import re

import pytest

from ofaseg.data.folder import FOLDER_KEYS
from ofaseg.data.parquet import schema
from ofaseg.data.rows import COLUMNS
from ofaseg.vocabulary import ClassVocabulary
from tests.conftest import ROOT

DATA_FORMAT = (ROOT / "docs" / "data_format.md").read_text(encoding="utf-8")
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs", "exec"), {"__name__": "docs"})
    assert list(tmp_path.iterdir())  # they write what they say


def test_the_data_format_page_has_an_example():
    assert any(block.id.startswith("data_format.md") for block in BLOCKS)


def section(title: str) -> str:
    return DATA_FORMAT.split(f"## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Names in backticks in the first column of a section's tables."""
    cells = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_column_and_key_is_described():
    assert first_cells(section("Columns")) == list(COLUMNS)
    assert sorted(first_cells(section("TSV"))) == sorted(COLUMNS)
    assert set(first_cells(section("vocabulary.json"))) == {*ClassVocabulary(("a",)).to_json(), *FOLDER_KEYS}


def test_parquet_types_are_those_of_the_schema():
    rows = dict(re.findall(r"^\| (`[^|]*`) \| `([^`]+)`", section("Parquet"), re.MULTILINE))
    described = {name: text for cell, text in rows.items() for name in re.findall(r"`([^`]+)`", cell)}
    shorter = {name: re.sub(r"\belement: |\bitem: ", "", str(schema([name]).field(name).type)) for name in COLUMNS}
    assert described == shorter

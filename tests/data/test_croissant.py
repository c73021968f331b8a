"""Croissant metadata: what the specification requires, true sums and sizes, and columns that are there."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from ofaseg.data.croissant import CONFORMS_TO, write_croissant
from ofaseg.data.rows import ShardError
from tests.data_prep.raw_layouts import write_shards

REQUIRED = {
    "sc:Dataset": ("@context", "name", "description", "conformsTo", "distribution", "recordSet"),
    "cr:FileObject": ("@id", "name", "contentUrl", "encodingFormat", "sha256"),
    "cr:FileSet": ("@id", "name", "containedIn", "encodingFormat", "includes"),
    "cr:RecordSet": ("@id", "name", "field"),
    "cr:Field": ("@id", "name", "dataType"),
}
"""Properties that Croissant 1.0 requires, by type."""


def nodes(value):
    """Every typed node of the document; inline data and the context are left out."""
    if isinstance(value, dict):
        if "@type" in value:
            yield value
        for key, inner in value.items():
            if key not in ("@context", "data"):
                yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def references(value):
    """Every {"@id": ...} that points elsewhere."""
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for key, inner in value.items():
            if key not in ("@context", "data"):
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.fixture(params=["tsv", "parquet"])
def written(request, tmp_path):
    """(folder, its Croissant metadata): split train in two files, split val in one."""
    root = write_shards(tmp_path / "toy data", request.param)
    write_shards(root, request.param, num=2, split="val")
    return root, json.loads(write_croissant(root, license="CC-BY-4.0").read_text())


def test_required_properties_and_references(written):
    _, metadata = written
    assert metadata["conformsTo"] == CONFORMS_TO and metadata["license"] == "CC-BY-4.0" and "url" not in metadata
    found = list(nodes(metadata))
    assert {node["@type"] for node in found} == set(REQUIRED)
    for node in found:
        required = [key for key in REQUIRED[node["@type"]] if key != "dataType" or "subField" not in node]
        missing = [key for key in required if not node.get(key)]
        assert not missing, (node.get("@id"), missing)
    ids = [node["@id"] for node in found if "@id" in node]
    assert len(ids) == len(set(ids)) and set(references(metadata)) <= set(ids)


def test_files_are_described_as_they_are(written):
    root, metadata = written
    files = {node["@id"]: node for node in nodes(metadata) if node["@type"] == "cr:FileObject"}
    assert sorted(files) == sorted(path.name for path in root.iterdir() if path.suffix in (".tsv", ".parquet")) and len(files) == 3
    for name, node in files.items():
        data = (root / node["contentUrl"]).read_bytes()
        assert node["sha256"] == hashlib.sha256(data).hexdigest() and node["contentSize"] == f"{len(data)} B", name
    (file_set,) = [node for node in nodes(metadata) if node["@type"] == "cr:FileSet"]
    assert sorted(path.name for path in root.glob(file_set["includes"])) == sorted(ref["@id"] for ref in file_set["containedIn"])


def test_fields_are_the_columns(written):
    root, metadata = written
    columns = json.loads((root / "vocabulary.json").read_text())["columns"]
    for split in ("train", "val"):
        (record_set,) = [node for node in metadata["recordSet"] if node["@id"] == split]
        assert [field["name"] for field in record_set["field"]] == columns
        for field in record_set["field"]:
            for leaf in field.get("subField", [field]):
                assert leaf["source"]["extract"]["column"] == field["name"]
    for path in root.glob("*.parquet"):
        schema = pq.read_schema(path)
        assert schema.names == columns
        for field in record_set["field"]:
            names = [leaf["source"]["transform"]["jsonPath"] for leaf in field.get("subField", ())]
            assert not names or [entry.name for entry in schema.field(field["name"]).type.value_type] == names


def test_classes_are_inline(written):
    _, metadata = written
    classes = metadata["recordSet"][0]
    assert [entry["classes/name"] for entry in classes["data"]] == ["sky", "tall grass", "car"]
    assert {key for entry in classes["data"] for key in entry} == {field["@id"] for field in classes["field"]}
    assert "3 classes; label value 255 is no label" in metadata["description"] and "train (5 rows), val (2 rows)" in metadata["description"]


def test_the_official_checker_accepts_it(written):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed (extra croissant)")
    root, _ = written
    dataset = mlcroissant.Dataset(jsonld=str(root / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    if list(root.glob("*.parquet")):
        rows = list(dataset.records("val"))
        assert [row["val/id"] for row in rows] == [b"sample_0", b"sample_1"]


def test_it_is_written_again_only_when_it_changed(written):
    root, _ = written
    (root / "croissant.json").unlink()
    first = write_croissant(root).stat()
    assert write_croissant(root).stat().st_ino == first.st_ino
    write_shards(root, json.loads((root / "vocabulary.json").read_text())["format"], num=3, split="val")
    assert "val (3 rows)" in json.loads(write_croissant(root).read_text())["description"]


def test_errors(tmp_path):
    with pytest.raises(ShardError, match="no shards with a vocabulary.json"):
        write_croissant(tmp_path)

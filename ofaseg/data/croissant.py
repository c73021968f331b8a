"""Croissant metadata (http://mlcommons.org/croissant/1.0, JSON-LD) beside shards: what the files are, for search and tools."""

import hashlib
import json
from pathlib import Path

from ofaseg.atomic import atomic_write
from ofaseg.data.folder import list_splits, read_description
from ofaseg.data.rows import FILE_COLUMNS, LIST_COLUMNS, ShardError

FILE_NAME = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification asks to repeat in every file."""
_ENCODING = {".parquet": "application/x-parquet", ".tsv": "text/tab-separated-values"}
_ENTRIES = {
    "boxes": {"box": "sc:Float", "text": "sc:Text", "class_id": "sc:Integer"},
    "segments": {"id": "sc:Integer", "class_id": "sc:Integer", "is_crowd": "sc:Boolean", "area": "sc:Integer", "box": "sc:Float"},
}
_ENTRIES["instances"] = _ENTRIES["segments"] | {"area": "sc:Float", "mask": "sc:Text"}
_MEANINGS = {
    "image": "JPEG or PNG file of the photo.",
    "label_map": "PNG of the photo's height and width; a pixel holds a class number, see record set classes.",
    "id": "Unique name of the sample in its split.",
    "captions": "Sentences about the whole image.",
    "boxes": "Region boxes [x0, y0, x1, y1] in pixels with a phrase and a class number from 0, or none.",
    "segment_map": "RGB PNG of segment ids R + 256 G + 65536 B, 0 = none.",
    "segments": "Per segment id: class number from 0, whether it is a crowd, area in pixels, box.",
    "instances": "Per object: class number from 0, whether it is a crowd, area in pixels, box, mask as COCO's run lengths in text.",
}


def write_croissant(root, name: str = "", license: str = "", url: str = "") -> Path:
    """Writes `croissant.json` into data folder `root`, about all splits that are there; an old one is replaced if it differs.

    Every shard is read once for its SHA-256.

    Args:
        name: of the dataset; default what vocabulary.json calls its source, else the folder's name.
        license, url: of the dataset, left out when empty: the shards do not say.

    Returns: the path of the file.

    Raises:
        ShardError: there are no shards, or a file cannot be read or written.
        VocabularyError: vocabulary.json is malformed.
    """
    path = Path(root) / FILE_NAME
    try:
        text = json.dumps(describe(root, name, license, url), indent=1, ensure_ascii=False)
        if path.exists() and path.read_bytes() == text.encode("utf-8"):
            return path
        with atomic_write(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise ShardError.at(error.filename or path, f"{error.strerror or error}; check the disk and the path") from error
    return path


def describe(root, name: str = "", license: str = "", url: str = "") -> dict:
    """The metadata as a JSON-ready dict; arguments and errors as of `write_croissant`, but OSError is raised as it is."""
    root = Path(root)
    description = read_description(root) or {}
    columns = description.get("columns")
    splits = list_splits(root)
    if not splits or not columns:
        raise ShardError.at(root, "no shards with a vocabulary.json; give a folder that data_prep/prepare.py wrote")
    names = description.get("names")
    metadata = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name or description.get("source") or root.resolve().name,
        "description": _summary(description, splits),
        "conformsTo": CONFORMS_TO,
        "license": license,
        "url": url,
        "version": "1.0.0",
        "distribution": [entry for split, paths in splits.items() for entry in _distribution(split, paths)],
        "recordSet": [_record_set(split, paths, columns, bool(names)) for split, paths in splits.items()],
    }
    if names:
        metadata["recordSet"].insert(0, _classes(names, int(description.get("label_offset", 0))))
    return {key: value for key, value in metadata.items() if value != ""}


def _summary(description: dict, splits: dict) -> str:
    counts = description.get("num_rows", {})
    parts = [f"{split} ({counts[split]} rows)" if split in counts else split for split in splits]
    text = f"Images with label maps for segmentation. Splits: {', '.join(parts)}."
    if description.get("names"):
        text += f" {len(description['names'])} classes; label value {description.get('ignore_index')} is no label."
    if description.get("format") == "tsv":
        text += " TSV files have no header line; their fields are the record sets' fields in order."
    return text


def _distribution(split: str, paths: list[str]) -> list[dict]:
    """A FileObject for each shard, and the FileSet of the split."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": Path(path).name,
            "name": Path(path).name,
            "contentUrl": Path(path).name,
            "contentSize": f"{Path(path).stat().st_size} B",
            "encodingFormat": _ENCODING[Path(path).suffix],
            "sha256": _sha256(path),
        }
        for path in paths
    ]
    if len(files) == 1:
        return files
    file_set = {
        "@type": "cr:FileSet",
        "@id": _file_set(split),
        "name": _file_set(split),
        "containedIn": [{"@id": file["@id"]} for file in files],
        "encodingFormat": files[0]["encodingFormat"],
        "includes": f"{split}-*{Path(paths[0]).suffix}",
    }
    return [*files, file_set]


def _file_set(split: str) -> str:
    return f"{split}-files"


def _sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_set(split: str, paths: list[str], columns: list[str], has_classes: bool) -> dict:
    """The rows of a split, a field per column."""
    source = {"fileObject": {"@id": Path(paths[0]).name}} if len(paths) == 1 else {"fileSet": {"@id": _file_set(split)}}
    fields = [_field(split, column, source, paths[0].endswith(".parquet")) for column in columns]
    numbering = " Classes are numbered in record set classes." if has_classes else ""
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"The samples of split {split}, one per row.{numbering}",
        "key": {"@id": f"{split}/id"},
        "field": fields,
    }


def _field(split: str, column: str, source: dict, is_parquet: bool) -> dict:
    """A column: in Parquet a picture is a struct with its bytes and the lists are lists, in TSV both are text."""
    field = {"@type": "cr:Field", "@id": f"{split}/{column}", "name": column}
    meaning = _MEANINGS.get(column, "A column that readers of these shards pass over.")
    extract = {"extract": {"column": column}}
    if not is_parquet:
        meaning += " Base64 text." if column in FILE_COLUMNS else " A JSON list." if column in LIST_COLUMNS else ""
        return field | {"description": meaning, "dataType": "sc:Text", "source": source | extract}
    field["description"] = meaning
    if column in FILE_COLUMNS:
        return field | {"dataType": "sc:ImageObject", "source": source | extract | {"transform": {"jsonPath": "bytes"}}}
    if column not in _ENTRIES:
        repeated = {"repeated": True} if column in LIST_COLUMNS else {}
        return field | {"dataType": "sc:Text", "source": source | extract} | repeated
    entries = [
        {"@type": "cr:Field", "@id": f"{split}/{column}/{name}", "name": name, "dataType": kind}
        | {"source": source | extract | {"transform": {"jsonPath": name}}}
        | ({"repeated": True} if name == "box" else {})
        for name, kind in _ENTRIES[column].items()
    ]
    return field | {"repeated": True, "subField": entries}


def _classes(names: list[str], label_offset: int) -> dict:
    """The class names with their number (from 0) and their value in a stored label map, as a record set with its data."""
    types = {"number": "sc:Integer", "label_value": "sc:Integer", "name": "sc:Text"}
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "The classes: number from 0, value in the label maps, name.",
        "key": {"@id": "classes/number"},
        "field": [{"@type": "cr:Field", "@id": f"classes/{key}", "name": key, "dataType": kind} for key, kind in types.items()],
        "data": [
            {"classes/number": k, "classes/label_value": k + label_offset, "classes/name": name} for k, name in enumerate(names)
        ],
    }

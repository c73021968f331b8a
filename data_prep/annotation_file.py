"""JSON files of annotations in COCO's form: photos, and the records drawn on each of them."""

import json
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from data_prep.json_records import Record, scan_lists
from data_prep.paired import photo_bytes
from data_prep.source import Source, SourceError
from ofaseg.data.codec import MAX_PIXELS
from ofaseg.vocabulary import ClassVocabulary

_LARGEST_ID = 2**62


class AnnotatedPhoto(NamedTuple):
    """A record of `images`; `phase` is its split in PASCAL in Detail, "" elsewhere."""

    id: int
    file_name: str
    height: int
    width: int
    phase: str


class AnnotationFile:
    """The photos of a JSON file and, read when asked for, the annotations of each; small and picklable.

    Args:
        path: a JSON object with the lists `images`, `categories`, and one of annotations with `image_id` and `category_id`.
        annotations: the name of that list.
        image_key: the key of a photo's id in `images`.
        nested: keep the folders in `file_name`; else the bare name stands for a photo.

    Attributes:
        photos: the records of `images` in file order.
        categories: the records of `categories` as they stand.

    Raises:
        FileNotFoundError: there is no such file.
        SourceError: it cannot be read, a list is missing, or a photo's record lacks a key.
    """

    def __init__(self, path, annotations: str = "annotations", image_key: str = "id", nested: bool = False):
        self.path = Path(path)
        keep = {"images": _itself, annotations: _image_id, "categories": _itself}
        lists = scan_lists(path, keep)
        records = enumerate(lists["images"])
        self.photos = [_photo(record.kept, image_key, f"{path}, images[{number}]", nested) for number, record in records]
        self.categories = [record.kept for record in lists["categories"]]
        self._ambiguous = _repeated(photo.id for photo in self.photos), _repeated(photo.file_name for photo in self.photos)
        self._index(lists[annotations])

    def check_photo(self, photo: AnnotatedPhoto) -> None:
        """Compares a photo, of this list or another file's, with the record of its id in `images`; it may be absent there.

        Raises:
            SourceError: another name or size; or a photo whose id or name stands twice, so that its annotations may be another's.
        """
        for key, value, repeated in zip(("id", "file_name"), (photo.id, photo.file_name), self._ambiguous):
            if value in repeated:
                raise SourceError(f"{self.path}: two records of images have the {key} {value!r}; remove one, or correct it")
        here = self._by_id.get(photo.id, photo)
        if _told_apart_by(here) != _told_apart_by(photo):
            problem = f"image {photo.id} is {here.file_name}, {here.height}x{here.width} (height x width)"
            raise SourceError(f"{self.path}: {problem}, elsewhere {photo.file_name}, {photo.height}x{photo.width}; pair the files again")

    @cached_property
    def _by_id(self) -> dict[int, AnnotatedPhoto]:
        return {photo.id: photo for photo in self.photos}

    def _index(self, records: list[Record]) -> None:
        of_photo = np.array([record.kept for record in records], dtype=np.int64)
        self._order = np.argsort(of_photo, kind="stable")  # file order within a photo
        self._of_photo = of_photo[self._order]
        self._spans = np.array([(record.start, record.end) for record in records], dtype=np.int64).reshape(-1, 2)[self._order]

    def without_photo(self) -> list[int]:
        """Numbers of the annotations whose image_id is that of no photo, in file order."""
        known = np.isin(self._of_photo, [photo.id for photo in self.photos])
        return sorted(self._order[~known].tolist())

    def annotations(self, photo: AnnotatedPhoto) -> Iterator[tuple[str, dict]]:
        """(where it stands, record) of each annotation of a photo, in file order.

        Raises:
            SourceError: an annotation without `category_id`, or as `records`.
        """
        for where, record in self.records(photo):
            if not isinstance(record.get("category_id"), int):
                raise SourceError(f"{where}: category_id is {record.get('category_id')!r}, not a number; correct the record")
            yield where, record

    def records(self, photo: AnnotatedPhoto) -> Iterator[tuple[str, dict]]:
        """As `annotations`, for records of any content, such as those that list the segments of a photo.

        Raises:
            SourceError: as `check_photo`, or the file changed since it was opened.
        """
        self.check_photo(photo)
        first, last = (int(np.searchsorted(self._of_photo, photo.id, side)) for side in ("left", "right"))
        with open(self.path, "rb") as file:
            for number in range(first, last):
                start, end = self._spans[number].tolist()
                where = f"{self.path}, annotation {self._order[number]} (of {photo.file_name})"
                file.seek(start)
                try:
                    record = json.loads(file.read(end - start))
                except ValueError as error:
                    raise SourceError(f"{where}: the file changed while it was read; call again") from error
                yield where, record


def _repeated(values: Iterable) -> frozenset:
    return frozenset(value for value, count in Counter(values).items() if count > 1)


def _itself(record):
    return record


def _image_id(record) -> int:
    """The photo of an annotation, -1 for none: such a record belongs to no sample."""
    value = record.get("image_id") if isinstance(record, dict) else None
    return value if isinstance(value, int) and 0 <= value < _LARGEST_ID else -1


def _told_apart_by(photo: AnnotatedPhoto) -> tuple:
    """Some copies of a file write folders before the names, others do not."""
    return photo.id, PurePosixPath(photo.file_name).name, photo.height, photo.width


def path_within(file_name: str, where: str) -> PurePosixPath:
    """A file_name as a path below its folder. Raises SourceError for one that leads out of it."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(f"{where}: file_name {file_name!r} leads out of its folder; correct the record")
    return path


def _photo(record, image_key: str, where: str, nested: bool) -> AnnotatedPhoto:
    if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
        raise SourceError(f"{where}: no file_name; correct the record")
    for key, least in ((image_key, 0), ("height", 1), ("width", 1)):
        value = record.get(key)
        if not isinstance(value, int) or not least <= value < _LARGEST_ID:
            raise SourceError(f"{where}: {key} of {record['file_name']} is {value!r}, not a number from {least} on; correct the record")
    if record["height"] * record["width"] > MAX_PIXELS:
        raise SourceError(f"{where}: {record['file_name']} of {record['width']}x{record['height']} pixels is too large; correct the record")
    path = path_within(record["file_name"], where) if nested else PurePosixPath(record["file_name"])
    name = path.as_posix() if nested else path.name
    return AnnotatedPhoto(record[image_key], name, record["height"], record["width"], str(record.get("phase", "")))


class AnnotationSource(Source):
    """Photos whose label maps are drawn from a file of annotations; a subclass says how by `draw`.

    Args:
        photos: those of `annotations.photos` that are the samples.
        folder: where the photos lie.

    Raises:
        SourceError: there is no photo.
    """

    def __init__(self, vocabulary: ClassVocabulary, annotations: AnnotationFile, photos: Sequence[AnnotatedPhoto], folder: Path):
        if not photos:
            raise SourceError(f"{annotations.path}: no photo of this split in the list 'images'; is this the file of another split?")
        self.vocabulary, self.annotations, self.photos, self.folder = vocabulary, annotations, list(photos), folder

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> dict:
        """Raises FileNotFoundError for a missing photo, SourceError for annotations that cannot be drawn."""
        path = self.folder / self.photos[i].file_name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: photo not found, but {self.annotations.path} lists it; copy it there")
        return {"id": path.stem, "image": photo_bytes(path), "label_map": self.draw(self.photos[i])}

    def draw(self, photo: AnnotatedPhoto) -> np.ndarray:
        """(height, width) int32 class ids with `IGNORE_INDEX`."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        return str(self.folder / self.photos[i].file_name)

    def files(self, i: int) -> tuple[str, ...]:
        return self.name(i), str(self.annotations.path)

"""The shipped finer names: complete, clean, and in the sense each dataset means."""

import json
import re
from pathlib import Path

import pytest

import data_prep
from data_prep import shapes
from data_prep.shapes_drawing import COLOURS, OBJECTS
from data_prep.subclass_sets import names, subclass_set
from ofaseg.vocabulary import VocabularyError

FOLDER = Path(data_prep.__file__).parent
CLASS_NAMES = {path.stem: tuple(path.read_text(encoding="utf-8").splitlines()) for path in sorted((FOLDER / "class_names").glob("*.txt"))}
CLASS_NAMES["shapes"] = shapes.CLASS_NAMES
SPELLING = re.compile(r"[a-z]+(['-][a-z]+)*( [a-z]+(['-][a-z]+)*)*")
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe"
OTHER_ANIMALS = "goat ass donkey mule deer antelope okapi bison yak wolf fox panda koala llama rhino hippo"
# what a name of the class must not say: another sense of the word, or another thing that shares a word with it
WRONG_SENSE = {
    "platform": "streaming financial trading online software social gaming cloud oil diving shoe",
    "water": "sparkling alkaline mineral tonic soda bottled drinking glass bottle",
    "mouse": "rat rodent field pet white cartoon squeaking",
    "keyboard": "piano music musical synthesizer electronic organ",
    "monitor": "lizard baby heart",
    "tvmonitor": "lizard baby heart",
    "kite": "bird hawk raptor",
    "baseball bat": "fruit vampire flying",
    "bear": "teddy toy gummy panda koala",
    "orange": "juice color paint",
    "apple": "phone logo pie",
    "remote": "island village",
    "straw": "plastic drinking paper",
    "tie": "railroad knot game",
    "track": "running race athletic dirt music bicycle",
    "railroad": "station",
    "plate": "license number tectonic steel",
    "sign": "zodiac hand",
    "book": "e-book audiobook",
    "train": "bridal toy",
    "tank": "army battle tracked armored fish",
    "bar": "chocolate candy metal soap",
    "fan": "sports football hand",
    "ball": "ballroom gown dance",
    "hood": "car engine hooded jacket",
    "base": "military baseball air",
    "stage": "coach rocket",
    "case": "suitcase phone court",
    "screen": "computer phone television door",
    "glass": "window pane reading eye",
    "pot": "cooking coffee tea chamber",
    "palm": "hand",
    "runway": "fashion model catwalk",
    "washer": "rubber metal pressure",
    "pier": "bridge",
    "plant": "power factory nuclear",
    "light": "traffic",
    "hovel": "tent",
}
# what each name must say, where the plain word has a second sense
SENSE = {
    "platform": r"platform",
    "mouse": r"computer mouse",
    "keyboard": r"keyboard",
    "track": r"track|tram rails|railroad ties",
    "baseball bat": r"\bbat$",
    "baseball glove": r"glove|mitt",
    "kite": r"kite",
    "fan": r"fan$",
    "hood": r"hood",
    "screen": r"screen",
    "crt screen": r"crt|ray tube|tube tv|beige|old computer screen",
    "arcade machine": r"game|machine|arcade",
    "tank": r"tank",
    "bar": r"bar\b",
}


def says(name: str, word: str) -> bool:
    """Whether `word`, also in the plural, is a word (or a part of a hyphenated word) of `name`."""
    return re.search(rf"\b{re.escape(word)}(e?s)?\b", name) is not None


def singular(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w\w\w)e?s$", "", word) for word in name.lower().split())


def wrong_senses(kind: str, name: str) -> list[str]:
    """The words of `name` that a class `kind` must not have."""
    words = WRONG_SENSE.get(kind, "").split()
    if kind in ANIMALS.split():
        words += [animal for animal in f"{ANIMALS} {OTHER_ANIMALS}".split() if animal != kind]
    return [word for word in words if says(name, word)]


def defects(subclasses: dict) -> list[str]:
    """What is wrong with {class: [names]}, one line for each."""
    found, owner = [], {}
    for kind, finer in subclasses.items():
        if len(finer) < 5:
            found.append(f"{kind}: {len(finer)} names")
        for name in finer:
            where = f"{kind}: {name!r}"
            if not SPELLING.fullmatch(name) or len(name.split()) > 6:
                found.append(f"{where} is misspelt")
            if singular(name) in owner:
                found.append(f"{where} stands also under {owner[singular(name)]}")
            if name.lower() in {other.lower() for other in subclasses}:
                found.append(f"{where} is a class")
            if wrong := wrong_senses(kind, name):
                found.append(f"{where} says {wrong}")
            if kind in SENSE and not re.search(SENSE[kind], name):
                found.append(f"{where} does not tell its sense")
            owner[singular(name)] = kind
    return found


def test_every_vocabulary_has_a_set():
    assert {"voc21", "ade150", "shapes"} <= set(CLASS_NAMES)
    assert names() == tuple(sorted(CLASS_NAMES))


@pytest.mark.parametrize("name", sorted(CLASS_NAMES))
def test_classes_in_order_with_strings(name):
    text = (FOLDER / "subclasses" / f"{name}.json").read_text(encoding="utf-8")
    pairs = json.loads(text, object_pairs_hook=list)  # a key that stands twice is seen here only
    assert tuple(key for key, _ in pairs) == CLASS_NAMES[name]
    assert all(isinstance(finer, list) and all(isinstance(entry, str) for entry in finer) for _, finer in pairs)
    assert subclass_set(name) == dict(pairs)


@pytest.mark.parametrize("name", sorted(CLASS_NAMES))
def test_no_defect(name):
    assert defects(subclass_set(name)) == []


@pytest.mark.parametrize(
    "kind, finer, message",
    [
        ("cat", "Maine Coon cat", "misspelt"),
        ("car", "pickup (truck)", "misspelt"),
        ("aeroplane", "commercial_jetliner", "misspelt"),
        ("background", "green background ", "misspelt"),
        ("bottle", "two  litre bottle", "misspelt"),
        ("person", "a man on the left of a picture", "misspelt"),
        ("person", "tabby cats", "stands also under cat"),
        ("cat", "kittens", "stands also under cat"),
        ("cat", "cat", "is a class"),
        ("table", "bench", "is a class"),
        ("platform", "video streaming platform", "says"),
        ("platform", "stock exchange", "does not tell its sense"),
        ("water", "sparkling water", "says"),
        ("water", "alkaline water", "says"),
        ("mouse", "house mouse", "does not tell its sense"),
        ("sheep", "mountain goat", "says"),
        ("cow", "wild ass", "says"),
        ("keyboard", "piano keyboard", "says"),
    ],
)
def test_the_check_finds_the_defects_of_other_lists(kind, finer, message):
    subclasses = subclass_set("context60")
    subclasses[kind].append(finer)
    found = defects(subclasses)
    assert len(found) == 1 and found[0].startswith(kind) and message in found[0]


def test_wrong_species_and_short_lists_are_found():
    subclasses = {key: list(finer) for key, finer in subclass_set("coco_object81").items()}
    subclasses["giraffe"][0], subclasses["zebra"][0] = "girgentana goat", "african wild ass"
    subclasses["cat"] = subclasses["cat"][:4]
    assert [line.split(":")[0] for line in defects(subclasses)] == ["cat", "zebra", "giraffe"]


def test_no_name_places_a_class_beside_another():
    """ "laptop on a desk" would draw the map of laptops to desks."""
    beside = re.compile(r" (?:on|in|at|under|near|beside|behind|by|with|over) (?:(?:a|an|the) )?(.+)")
    for vocabulary in names():
        subclasses = subclass_set(vocabulary)
        for kind, finer in subclasses.items():
            others = [other for other in subclasses if other != kind]
            for name in finer:
                rest = beside.search(name)
                assert not rest or not [other for other in others if says(rest[1], other)], f"{vocabulary}, {kind}: {name}"


def test_coco_vocabularies_agree():
    whole = subclass_set("coco_stuff171")
    for part in ("coco_object81", "coco_unseen15"):
        shared = {kind: finer for kind, finer in subclass_set(part).items() if kind in whole}
        assert len(shared) == len(CLASS_NAMES[part]) - ("background" in CLASS_NAMES[part])
        assert shared == {kind: whole[kind] for kind in shared}


def test_shapes_have_the_colours_they_are_drawn_in():
    finer = subclass_set("shapes")
    for kind, (_, colours) in OBJECTS.items():
        said = {word for name in finer[kind] for word in name.split() if word in COLOURS}
        assert said == set(colours), kind
        assert all(name.split()[-1] == kind for name in finer[kind])


def test_an_unknown_set_lists_the_known_ones():
    for name in ("voc", "../class_names/voc21", "README", ""):
        with pytest.raises(VocabularyError, match=f"no subclass set '{re.escape(name)}'; choose one of ade150, camvid11, .*voc21"):
            subclass_set(name)


def test_a_set_can_be_changed_without_changing_the_next():
    subclass_set("voc21")["cat"].clear()
    assert len(subclass_set("voc21")["cat"]) >= 5


def test_the_readme_counts():
    table = re.findall(r"\| `(\w+)\.json` \| (\d+) \| (\d+) \|", (FOLDER / "subclasses" / "README.md").read_text(encoding="utf-8"))
    assert {name: (int(k), int(n)) for name, k, n in table} == {
        name: (len(subclass_set(name)), sum(map(len, subclass_set(name).values()))) for name in names()
    }

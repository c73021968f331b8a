import re

import pytest

from ofaseg.prompts import TEMPLATES, load_templates, source_token_ids


def test_layout_has_no_separators_and_ends_with_unknown():
    assert source_token_ids([9], [[10, 11], [12]], [13], 0, 2, 20, ["a b", "c"]) == [0, 9, 10, 11, 12, 13, 2]


def test_too_many_names_say_how_many_fit():
    names = [f"name{k}" for k in range(1000)]
    ids = [[4, 5]] * 1000
    with pytest.raises(ValueError, match=r"1000 class names take 2000 tokens.*the first 504 names fit \(up to 'name503'\)"):
        source_token_ids([1] * 12, ids, [3], 0, 2, 1024, names)
    assert len(source_token_ids([1] * 12, ids[:504], [3], 0, 2, 1024, names[:504])) == 1023
    assert len(source_token_ids([1] * 12, [[4]] * 1000, [3], 0, 2, 1024, names)) == 1015


# -- templates ---------------------------------------------------------------------------------------------------------

FAMILIES = {
    r"a .+ photo of (a|the) \{\}\.": 2 * 11,
    r"a photo of (a|the) (\w[\w ]* )?\{\}\.": 2 * 9,
    r"a (sculpture|rendering|tattoo|drawing|painting|doodle|sketch|rendition) of (a|the) \{\}\.": 2 * 8,
    r"(graffiti|art|itap) of (a|the) \{\}\.": 2 * 3,
    r"(a|the) (embroidered|plastic|origami|toy|cartoon|plushie) \{\}\.": 2 * 6,
    r"(a|the) \{\} in a video game\.": 2,
    r"a photo of (many|my|one) \{\}\.": 3,
    r"itap of my \{\}\.": 1,
}
"""Kind of sentence -> how many of CLIP's 80 are of it."""

SENTENCES = (
    "a photo of a {}.", "a photo of the {}.", "a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.",
    "a photo of a hard to see {}.", "a jpeg corrupted photo of the {}.", "a black and white photo of a {}.", "itap of the {}.",
    "a rendition of the {}.", "a embroidered {}.", "a origami {}.", "the plushie {}.", "a {} in a video game.", "art of the {}.",
    "a photo of the small {}.", "a close-up photo of a {}.", "a low resolution photo of the {}.", "graffiti of a {}.",
)  # fmt: skip


def test_the_eighty_sentences():
    templates = TEMPLATES["imagenet80"]
    assert len(templates) == len(set(templates)) == 80 == sum(FAMILIES.values())
    for family, count in FAMILIES.items():
        assert sum(bool(re.fullmatch(family, template)) for template in templates) == count, family
    assert set(SENTENCES) <= set(templates)
    words = {word for template in templates for word in re.findall(r"[\w-]+", template)}
    known = (
        "a the photo of many my one itap bad low resolution cropped bright dark close-up black and white pixelated jpeg corrupted blurry "
        "good hard to see clean dirty cool large nice weird small sculpture rendering tattoo drawing painting doodle sketch rendition "
        "graffiti art embroidered plastic origami toy cartoon plushie in video game"
    )
    assert words == set(known.split())


def test_named_templates_have_one_slot_each():
    assert all(template.count("{}") == 1 for choice in TEMPLATES for template in load_templates(choice))
    assert load_templates("name") == ("{}",)


def test_own_templates(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\ufeffein Foto von {}.\n\n  {} im Nebel  \n", encoding="utf-8")
    assert load_templates(str(path)) == ("ein Foto von {}.", "{} im Nebel")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a photo\n", r"own.txt, line 1: 'a photo' needs exactly one \{\}"),
        (b"a {}\n{} and {}\n", r"own.txt, line 2: '\{\} and \{\}' needs exactly one"),
        (b"\n \n", "own.txt: no template in it"),
        (b"a \xff {}", "own.txt: not a UTF-8 text file"),
        (None, "neither a file nor one of imagenet80, photo, name"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_templates(str(path))


def test_fusioners_sentences():
    """Digest of Fusioner, section 4: 4 photos, 12 sizes and looks, 6 photos and 10 things in the scene."""
    templates = TEMPLATES["fusioner32"]
    assert len(templates) == len(set(templates)) == 32
    assert templates[:5] == (
        "a bad photo of the {}.", "a photo of the large {}.", "a photo of the small {}.", "a cropped photo of a {}.",
        "This is a photo of a {}",
    )  # fmt: skip
    assert templates[8:16:7] == ("This is a masked photo of a {}", "This is a cropped photo of a large {}")
    assert templates[16] == "A photo of a {} in the scene" and templates[21] == "a photo of a masked {} in the scene"
    assert templates[26] == "This is one {} in the scene" and templates[31] == "This is one masked {} in the scene"
    assert sum(template.endswith("in the scene") for template in templates) == 16

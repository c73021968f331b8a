"""Prompts: the words around class names; sentence templates of every method."""

from pathlib import Path

SEGMENTATION_PROMPT = "what is the segmentation map of the image? object:"
"""The source-text prefix of IFSeg (appendix, and its run scripts)."""

UNKNOWN_NAME = "unknown"
"""The word that IFSeg appends after the class names; it stands for unlabelled pixels and is never predicted."""


def source_token_ids(prompt_ids, class_token_ids, unknown_ids, bos: int, eos: int, max_positions: int, names) -> list[int]:
    """The source sequence shared by every sample: bos, prompt, name_0 .. name_{C-1}, "unknown", eos (no separators).

    Raises:
        ValueError: the sequence is longer than `max_positions`; says how many of the names fit.
    """
    budget = max_positions - 2 - len(prompt_ids) - len(unknown_ids)
    used = 0
    for k, ids in enumerate(class_token_ids):
        if used + len(ids) > budget:
            total = sum(len(other) for other in class_token_ids)
            raise ValueError(
                f"the {len(names)} class names take {total} tokens, the model has positions for {budget}: the first {k} names fit "
                f"(up to {names[k - 1]!r}); use fewer or shorter names, or a model with more --max-source-positions"
            )
        used += len(ids)
    body = [token for ids in class_token_ids for token in ids]
    return [bos, *prompt_ids, *body, *unknown_ids, eos]


PHOTO_ADJECTIVES = (
    "bad", "low resolution", "cropped", "bright", "dark", "close-up", "black and white", "pixelated", "jpeg corrupted", "blurry", "good",
)  # fmt: skip
LOOKS = ("", "hard to see ", "clean ", "dirty ", "cool ", "large ", "nice ", "weird ", "small ")
PICTURES = ("sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch", "rendition")
MATERIALS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 sentences for class names, with `{}` for the name (their order has no meaning: vectors are averaged)."""
    templates = ["a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."]
    for article in ("a", "the"):
        templates += [f"a {adjective} photo of {article} {{}}." for adjective in PHOTO_ADJECTIVES]
        templates += [f"a photo of {article} {look}{{}}." for look in LOOKS]
        templates += [f"a {picture} of {article} {{}}." for picture in PICTURES]
        templates += [f"{work} of {article} {{}}." for work in ("graffiti", "art", "itap")]
        templates += [f"{article} {material} {{}}." for material in MATERIALS]
        templates.append(f"{article} {{}} in a video game.")
    return tuple(templates)


def fusioner_templates() -> tuple[str, ...]:
    """Fusioner's 32 sentences: photos, photos of something masked or cropped, and what is in the scene."""
    photos = ("a bad photo of the {}", "a photo of the large {}", "a photo of the small {}", "a cropped photo of a {}")
    sizes = ("", "small ", "medium ", "large ")
    looks = [f"This is a {look}photo of a {size}{{}}" for look in ("", "masked ", "cropped ") for size in sizes]
    scenes = ["A photo of a {}", *photos, "a photo of a masked {}"]
    openings = ("There is a", "There is the", "This is a", "This is the", "This is one")
    scenes += [f"{opening} {masked}{{}}" for masked in ("", "masked ") for opening in openings]
    return (*(f"{photo}." for photo in photos), *looks, *(f"{scene} in the scene" for scene in scenes))


TEMPLATES = {
    "imagenet80": imagenet_templates(),
    "photo": ("a photo of a {}.",),
    "name": ("{}",),
    "fusioner32": fusioner_templates(),
    "llm_voc13": (
        "a photo of one {}.", "a photo of a cool {}.", "a photo of a weird {}.", "a photo of a nice {}.", "a jpeg corrupted photo of a {}.",
        "a pixelated photo of a {}.", "a photo of a {}.", "a cropped photo of the {}.", "a bright photo of a {}.",
        "a cropped photo of a {}.", "a bad photo of the {}.", "a drawing of a {}.", "a photo of the cool {}.",
    ),
    "llm_coco7": (
        "a photo of a weird {}.", "a jpeg corrupted photo of a {}.", "a photo of a {}.", "a photo of the weird {}.",
        "a photo of one {}.", "a low resolution photo of a {}.", "a bad photo of a {}.",
    ),
    "llm_context11": (
        "a photo of a nice {}.", "a jpeg corrupted photo of the {}.", "a photo of the nice {}.", "a bad photo of the {}.",
        "a jpeg corrupted photo of a {}.", "a good photo of the {}.", "itap of a {}.", "a photo of one {}.", "a photo of a {}.",
        "a photo of the cool {}.", "a good photo of a {}.",
    ),
}  # fmt: skip
"""Name -> sentences around a class name. The lists llm_* are those of the LLM-supervision paper's code, which chose each by the
scores of its single sentences on the data set it is named after; the one of VOC is used for all data sets there."""


def load_templates(choice: str) -> tuple[str, ...]:
    """The templates called `choice` in `TEMPLATES`, or those of a text file, one per line, each with one `{}` for the class name.

    Raises:
        ValueError: no such name or file; a line without `{}`, or with more than one; the message names file and line.
    """
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    path = Path(choice)
    if not path.is_file():
        raise ValueError(f"templates {choice!r}: neither a file nor one of {', '.join(TEMPLATES)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file ({error.reason}); write one template per line") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and line.count("{}") != 1:
            raise ValueError(f"{path}, line {number}: {line!r} needs exactly one {{}} where the class name goes")
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise ValueError(f"{path}: no template in it; write one per line, such as 'a photo of a {{}}.'")
    return templates

"""`ofaseg predict --maps`: heat maps of free phrases over photos, and their cosines as .npz."""

from pathlib import Path
from typing import Callable

from ofaseg.commands import common
from ofaseg.commands.evaluate import safe_name
from ofaseg.commands.predict import read_bytes
from ofaseg.data.mask_target_dataset import SEMANTIC
from ofaseg.evaluation import heatmaps, pictures

NAME_BYTES = 100
"""Of a phrase in a file name at most, so that with the photo's name and an ending it stays within a file system's 255."""


def worker(args) -> Callable[[str, Path], str]:
    """Loads the model; returns the function that draws the maps of one photo (source, stem of its results -> what to print).

    Raises:
        ValueError: no phrase, an option that has no meaning here, or a model without image and text tower.
    """
    from ofaseg.checkpoints import load_dual_encoder

    if not args.maps or not all(phrase.strip() for phrase in args.maps):
        raise ValueError("--maps needs at least one phrase, and none of them empty")
    if args.map_size < 0:
        raise ValueError(f"--map-size {args.map_size}: give the short side in pixels, or leave it out for the model's square")
    changes = {"--class-names": args.class_names, "--refine": args.refine, "--flip": args.flip, "--resnet-topk": args.resnet_topk}
    changes |= {"--resnet-iters": args.resnet_iters, "--bpe-dir": args.bpe_dir, "--subclasses": args.subclasses, "--fusion": args.fusion}
    changes |= {"--things": args.things, "--tasks": "" if args.tasks == SEMANTIC else args.tasks}
    without_meaning = [flag for flag, value in changes.items() if value not in ("", None, False)]
    if without_meaning:
        raise ValueError(f"--maps draws phrases and segments nothing; leave out {', '.join(without_meaning)}")
    overrides = common.parse_overrides(args.override)
    phrases = list(dict.fromkeys(args.maps))
    model, task = load_dual_encoder(args.checkpoint, common.choose_device(args.device), overrides)
    templates = task.templates if "templates" in overrides else ("{}",)
    names = file_names(phrases)

    def draw(source: str, stem: Path) -> str:
        from ofaseg.data import codec

        image = codec.decode_image(read_bytes(source))
        maps = task.similarity_maps(model, image, phrases, args.map_size, templates)
        heatmaps.save_maps(stem.with_name(stem.name + "_maps.npz"), maps)
        for k, name in enumerate(names):
            picture = heatmaps.heat_picture(image, maps, k)
            pictures.write(stem.with_name(f"{stem.name}_map_{name}.png"), pictures.encode(picture))
        return ", ".join(f"{phrase} {score:.3f}" for phrase, score in zip(phrases, maps.scores))

    return draw


def file_names(phrases: list[str]) -> list[str]:
    """One part of a file name per phrase; phrases that look alike there get a number."""
    return common.distinct(safe_name(phrase).encode()[:NAME_BYTES].decode(errors="ignore") for phrase in phrases)

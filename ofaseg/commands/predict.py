"""Segments photos into named classes: an overlay with a legend, an index PNG and a JSON file of areas for each.

Models of mask proposals also make panoptic segments and scored objects, with --tasks.
With --maps it draws where free phrases are instead: one heat map per phrase and the cosines as .npz.
Photos are files, folders, text files with one path or URL per line, and file:// or http(s):// URLs.
"""

import argparse
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ofaseg.commands import common
from ofaseg.data.codec import PHOTO_SUFFIXES
from ofaseg.data.mask_target_dataset import SEMANTIC
from ofaseg.evaluation import pictures, report
from ofaseg.utils.precision import cast_weights_once
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

URL_TIMEOUT = 20.0
MAX_URL_BYTES = 256 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", help="photos, folders, .txt lists of photos, file:// or http(s):// URLs")
    parser.add_argument("--checkpoint", required=True, help="fairseq checkpoint (.pt), or exported model.safetensors")
    parser.add_argument("--out", default="predictions", help="folder for the results (default: predictions)")
    parser.add_argument(
        "--tasks",
        default=SEMANTIC,
        help="what is made, of semantic, instance and panoptic, from one pass: semantic,instance,panoptic (default: semantic)",
    )
    parser.add_argument(
        "--things",
        default="",
        help="countable classes, a file or list of names, or none (default: as the checkpoint marks them; other words are all countable)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a photo could not be segmented")
    parser.add_argument(
        "--maps",
        nargs="+",
        default=[],
        metavar="PHRASE",
        help="draw where these phrases are, each read as written (within the sentences of --override templates=... where given)",
    )
    parser.add_argument(
        "--map-size", type=int, default=0, metavar="SIDE", help="short side in pixels that the model reads for --maps (default: its square)"
    )
    common.add_model_arguments(parser)


def run(args) -> int:
    from ofaseg.checkpoints import load_model
    from ofaseg.commands import predict_maps

    if not args.images:
        args.maps, args.images = photos_behind(args.maps)
    sources = list(dict.fromkeys(expand(args.images)))
    if not sources:
        raise ValueError(f"no photo in {', '.join(args.images)}; photos end in {' '.join(PHOTO_SUFFIXES)}")
    if args.maps or args.map_size:
        return for_each(sources, args, predict_maps.worker(args), "drawn")
    overrides = common.model_overrides(args)
    if args.class_names:
        overrides["data"] = ""  # the names of the photos' classes need not be those of the shards trained on
    if args.things:
        overrides["things"] = args.things
    device = common.choose_device(args.device)
    model, task = load_model(args.checkpoint, class_names=args.class_names or None, device=device, overrides=overrides)
    model.eval()
    tasks = common.parse_tasks(args.tasks, task.output_kinds)
    post = task.post_process(**common.post_process_changes(args))

    def segment(source: str, stem: Path) -> str:
        return "; ".join(", ".join(lines[:5]) or "nothing" for lines in predict_one(source, stem, model, task, post, tasks).values())

    return for_each(sources, args, segment, "segmented")


def photos_behind(phrases: list[str]) -> tuple[list[str], list[str]]:
    """(phrases, photos) of `--maps PHRASE ... PHOTO ...`, which a command line gives as phrases alone.

    Raises:
        ValueError: no photo stands behind the phrases, or no phrase before them.
    """
    first = len(phrases)
    while first and (_is_url(phrases[first - 1]) or Path(phrases[first - 1]).exists()):
        first -= 1
    if first == len(phrases):
        last = f" ({phrases[-1]!r} is no file)" if phrases else ""
        raise ValueError(f"no photo given{last}; name photos or folders first, or behind the phrases of --maps")
    if not first:
        raise ValueError(f"--maps needs at least one phrase, {phrases[0]!r} is a file; name photos first, or behind the phrases")
    return phrases[:first], phrases[first:]


@cast_weights_once()
def for_each(sources: list[str], args, work: Callable[[str, Path], str], done: str) -> int:
    """Calls `work` with every photo and the stem of its results, prints the line it returns, and gives the exit status.

    A photo that cannot be read, or is too large, is reported and costs only itself.
    """
    failures = 0
    for source, name in tqdm(zip(sources, output_names(sources)), total=len(sources), unit="image", disable=None):
        try:
            shown = work(source, Path(args.out) / name)
        except torch.OutOfMemoryError:
            failures += 1
            smaller = "a smaller --map-size" if args.maps else "--override patch_image_size=256"
            logger.error("%s: too large for the memory of %s; try %s, or --device cpu", source, common.choose_device(args.device), smaller)
            continue
        except (ValueError, OSError, cv2.error) as error:
            failures += 1
            logger.error("%s: %s", source, error)
            continue
        tqdm.write(f"{source}: {shown}")
    failed = f"; {failures} failed, see above" if failures else ""
    print(f"{len(sources) - failures} of {len(sources)} photos {done} into {args.out}{failed}")
    return 1 if failures == len(sources) or (args.strict and failures) else 0


def predict_one(source: str, stem: Path, model, task, post, tasks: Sequence[str] = (SEMANTIC,)) -> dict[str, list[str]]:
    """Segments one photo and writes what each task asks for; returns lines for people, task by task, the most important first.

    For the semantic task <stem>_overlay.png, <stem>_index.png and <stem>.json; for others see `predict_segments`.

    Raises:
        ValueError, OSError: the photo cannot be read or decoded.
    """
    from ofaseg.commands import predict_segments
    from ofaseg.data import codec

    start = time.perf_counter()
    image = codec.decode_image(read_bytes(source))
    batch = task.encode_image_for_predict(image)
    options = {} if tasks == (SEMANTIC,) else {"tasks": tasks}
    output = task.predict_batch(model, batch["net_input"], batch["native_sizes"], post, **options)[0]
    about = {"image": source, "height": image.shape[0], "width": image.shape[1], "class_names": list(task.vocabulary.names)}
    seconds = {"seconds": round(time.perf_counter() - start, 3)}
    lines = {}
    if SEMANTIC in tasks:
        areas = write_label_map(stem, about | {"post_process": asdict(post)} | seconds, image, output.label_map, task.vocabulary)
        lines[SEMANTIC] = [f"{area['name']} {area['percent']:.1f} %" for area in areas]
    about |= seconds
    if output.panoptic is not None:
        vocabulary = predict_segments.with_marks(task)
        lines["panoptic"] = predict_segments.write_panoptic(stem, about, image, output.panoptic, vocabulary)
    if output.instances is not None:
        vocabulary = predict_segments.with_marks(task)
        lines["instance"] = predict_segments.write_instances(stem, about, image, output.instances, vocabulary)
    return lines


def write_label_map(stem: Path, about: dict, image: np.ndarray, label_map: Tensor, vocabulary: ClassVocabulary) -> list[dict]:
    """Writes <stem>_overlay.png, <stem>_index.png and <stem>.json, which holds `about` and the areas; returns the areas."""
    label_map = label_map.cpu().numpy().astype(np.int32)
    areas = pictures.class_areas(label_map, vocabulary)
    overlay = pictures.overlay_with_legend(image, label_map, vocabulary)
    pictures.write(stem.with_name(stem.name + "_overlay.png"), pictures.encode(overlay))
    pictures.write(stem.with_name(stem.name + "_index.png"), pictures.index_png(label_map, vocabulary.palette))
    report.write_json(stem.with_name(stem.name + ".json"), about | {"areas": areas})
    return areas


def expand(arguments: list[str]) -> Iterator[str]:
    """Files and URLs named by the arguments, in order: folders are searched through, .txt files read line by line.

    Raises:
        ValueError: a path does not exist, or a list names itself.
    """
    for argument in arguments:
        if _is_url(argument):
            yield argument
            continue
        path = Path(argument)
        if path.is_dir():
            yield from (str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            for line in lines:
                if line and not line.startswith("#"):
                    yield line if _is_url(line) or Path(line).is_absolute() else str(path.parent / line)
        elif path.is_file():
            yield str(path)
        else:
            raise ValueError(f"{argument}: no such file or folder")


def output_names(sources: list[str]) -> list[str]:
    """One file stem per source, from its own name; equal names get a number."""
    paths = (urllib.parse.urlsplit(source).path if _is_url(source) else source for source in sources)
    return common.distinct(Path(urllib.parse.unquote(path)).stem or "image" for path in paths)


def read_bytes(source: str) -> bytes:
    """The bytes of a file or URL.

    Raises:
        ValueError: a URL that cannot be fetched, or is too large, with the reason.
        OSError: a file that cannot be read.
    """
    if not _is_url(source):
        return Path(source).read_bytes()
    parts = urllib.parse.urlsplit(source)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path)).read_bytes()
    try:
        request = urllib.request.Request(source, headers={"User-Agent": "ofaseg"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            data = response.read(MAX_URL_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise ValueError(f"the server answered {error.code} {error.reason}; check the address") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"cannot be fetched ({reason}); is this machine online? Download the file and give its path instead") from error
    if len(data) > MAX_URL_BYTES:
        raise ValueError(f"larger than {MAX_URL_BYTES // 2**20} MiB; download the file and give its path instead")
    return data


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://", "file://"))

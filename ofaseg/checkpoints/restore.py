"""From a checkpoint file to a model and its task, ready to predict."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Optional

import torch

from ofaseg.checkpoints import clip, freeseg, fusioner, simseg
from ofaseg.checkpoints.class_vectors import keep_text_vectors
from ofaseg.checkpoints.ifseg import (
    infer_architecture,
    is_official_configuration,
    is_pretraining,
    load_weights,
    recorded_vocabulary,
    translate_configuration,
)
from ofaseg.checkpoints.safe import load_state
from ofaseg.models.clip_state import is_clip
from ofaseg.models.freeseg_state import to_ours as freeseg_entries
from ofaseg.models.fusioner_state import is_fusioner
from ofaseg.models.ofa.state import CLASS_KEYS
from ofaseg.models.prompted_segmenter import PromptedSegmenter
from ofaseg.models.state import CheckpointError
from ofaseg.vocabulary import ClassVocabulary

logger = logging.getLogger(__name__)

DEFAULT_TASKS = {"segofa": "seq2seq_segmentation"} | dict.fromkeys(("simseg", "clip_dense"), "dense_segmentation")
DEFAULT_TASKS |= {"fusioner": "fusion_segmentation", "freeseg": "unified_segmentation"}
"""Registered model -> the task that segments with it."""
NO_CLASSES = "none"
"""Stands for the class list where there is none: a task has at least one class."""
TOKENIZER_OPTIONS = {"simseg": "bert_vocab"} | dict.fromkeys(("clip_dense", "fusioner", "freeseg"), "clip_bpe")
"""Registered model -> the task's option that the commands' one option for every tokenizer stands for."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"


def load_model(path, class_names: Optional[str] = None, device="cpu", overrides: Optional[dict] = None):
    """Builds the task and the model of a checkpoint and loads its weights.

    Works on checkpoints of fairseq-train, on exported ``.safetensors`` files (with their JSON beside them), and on official
    OFA, IFSeg, SimSeg and CLIP files. With other class names than the checkpoint's, the class embeddings are made from the names.

    Args:
        path: the checkpoint.
        class_names: a file or comma-separated list; None for the classes of the shards named by `overrides["data"]`, else those
            recorded with the checkpoint. A model trained with other words for the classes of just these shards keeps its words.
        device: where the model goes.
        overrides: options of the task or model to change, by name.

    Returns: (model in evaluation mode, task).

    Raises:
        CheckpointError: the file cannot be used, has no class names, or an override is unknown.
    """
    path = Path(path)
    model, task = _restored(path, load_state(path), class_names, device, overrides)
    if isinstance(model, PromptedSegmenter):
        keep_text_vectors(model, task.class_prompts)
    return model, task


def load_dual_encoder(path, device="cpu", overrides: Optional[dict] = None):
    """As `load_model` for uses in which classes play no part: phrases, captions, features. No class names are needed or encoded.

    Returns: (model with `embed_image`, `embed_text` and `patches`, in evaluation mode; its segmentation task).

    Raises:
        CheckpointError: as `load_model`; or the model has no image and text tower.
    """
    path = Path(path)
    state = load_state(path)
    if not simseg.is_simseg(state["model"]) and not is_clip(state["model"]):
        raise CheckpointError(f"{path}: not a dual encoder; this needs a model with an image and a text tower, such as SimSeg or CLIP")
    return _restored(path, state, NO_CLASSES, device, {"data": "", **(overrides or {})})


def _restored(path: Path, state: dict, class_names: Optional[str], device, overrides: Optional[dict]):
    """(model, task) of what `load_state` read from `path`; see `load_model`."""
    import ofaseg  # noqa: F401  registers tasks and models

    if freeseg.is_prompts(freeseg_entries(state["model"])):
        raise CheckpointError(f"{path}: holds learned prompts alone, which segment nothing; train masks with --prompt-checkpoint {path}")
    model_options, task_options, recorded = _options(state, path)
    overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
    model_name, model_config = _merged(_model_dataclass, model_options, overrides)
    if model_name in TOKENIZER_OPTIONS and "bpe_dir" in overrides:
        overrides[TOKENIZER_OPTIONS[model_name]] = overrides.pop("bpe_dir")
    if model_name == "fusioner":
        fusioner.find_files(model_config, overrides, path)
    if model_name == "clip_dense":
        clip.warn_of_activation(path, model_options | overrides)
    task_name, task_config = _merged(partial(_task_dataclass, model=model_name), task_options, overrides)
    unknown = [key for key in overrides if key not in model_config and key not in task_config]
    if unknown:
        raise CheckpointError(
            f"{path}: unknown option {', '.join(unknown)}; neither the task {task_name} nor the model {model_name} has it"
        )
    _warn_of_other_split(task_options, overrides, path)
    if "bpe_dir" in task_config:
        task_config["bpe_dir"] = _tokenizer_folder(task_config["bpe_dir"], path)
    if "bert_vocab" in task_config and "bert_vocab" not in overrides and str(task_config.get("text_tokenizer")) != "clip_bpe":
        task_config["bert_vocab"] = _word_pieces(task_config["bert_vocab"], path)
    if task_config.get("clip_bpe") and "clip_bpe" not in overrides:
        task_config["clip_bpe"] = _merges(task_config["clip_bpe"], path)
    if class_names is not None and task_config.get("subclasses") and "subclasses" not in overrides:
        logger.info("%s: the subclasses it was made with are of its own classes; those given are taken by their names", path)
        task_config["subclasses"] = ""
    for option in ("subclasses", "templates"):
        if task_config.get(option) and option not in overrides:
            task_config[option] = _recorded_file(task_config[option], path)
    task_config["rename_classes"] = bool(overrides.get("rename_classes"))  # what the run was allowed does not hold for new names
    if "things" in task_config:
        task_config["things"] = overrides.get("things") or ""  # marked in the recorded vocabulary already
    task = _build_task(task_name, task_config, class_names, recorded, path, "data" in overrides)
    task.trained_vocabulary = recorded
    names_made_rows = not any(model_config.get(key) for key in ("train_class_embedding", "random_class_embeddings", "untie_seg_projection"))
    same_classes = recorded.names == task.vocabulary.names if recorded is not None else not names_made_rows
    same_classes = same_classes and not is_pretraining(state) and "subclasses" not in overrides
    parent = _with_parent({"model": {**model_config, "_name": model_name}})
    model = task.build_model(parent.model, from_checkpoint=True)  # start weights and towers come from this file's side
    weights, rows = state["model"], {}
    if state["ema"] and not is_official_configuration(state["cfg"] or {}):
        logger.info("%s: using the averaged weights, as validation did", path)
        weights = state["ema"]
    if not same_classes and not isinstance(model, PromptedSegmenter):  # whose classes are never weights
        logger.info("%s: class embeddings are made from the %d class names", path, len(task.vocabulary))
        rows = {key: weights[key] for key in CLASS_KEYS if key in weights}
        weights = {key: value for key, value in weights.items() if key not in CLASS_KEYS}
    if model_name == "fusioner":
        fusioner.prepare(model, weights)
    load_weights(model, weights, str(path))
    if rows and recorded is not None and not names_made_rows and "subclasses" not in overrides:
        _take_trained_rows(model, rows, recorded.names, task.vocabulary)
    return model.to(device).eval(), task


@torch.no_grad()
def _take_trained_rows(model, rows: dict, trained: tuple[str, ...], vocabulary: ClassVocabulary) -> None:
    """Gives the classes that were trained their vectors, in any order; those of other names stay made from words, with a warning."""
    places = {name: k for k, name in enumerate(trained)}
    known = [(k, places[name]) for k, name in enumerate(vocabulary.names) if name in places]
    if not known:
        return
    to, of = (list(ids) for ids in zip(*known))
    own = model.state_dict()
    for key, values in rows.items():
        if key in own and len(values) == len(trained):
            own[key][to] = values[of].to(own[key])
    new = [name for name in vocabulary.names if name not in places]
    if new:
        told = f"the vectors of {', '.join(new[:5])}{', ...' if len(new) > 5 else ''} are made from their words, not trained"
        logger.warning("%s: %d of %d classes keep their trained vectors; %s", vocabulary.source, len(known), len(vocabulary), told)


def _options(state: dict, path: Path) -> tuple[dict, dict, Optional[ClassVocabulary]]:
    """Model options, task options (each with `_name`) and the recorded vocabulary of a loaded checkpoint."""
    cfg = state["cfg"] or {}
    model, task = dict(cfg.get("model") or {}), dict(cfg.get("task") or {})
    recorded = recorded_vocabulary(state, str(path))
    if _known_model(model.get("_name")) and not is_official_configuration(cfg):
        if task.get("eval_image_size"):  # of contrastive training, whose crops may be smaller than what it is evaluated with
            task["patch_image_size"] = task["eval_image_size"]
        return model, task, recorded
    family, name, sizes = published_architecture(state["model"], str(path))
    options, task_options, _ = translate_configuration(cfg) if family == "segofa" else ({}, {}, [])
    if family == "fusioner":
        task_options = fusioner.TASK_OPTIONS | {"patch_image_size": sizes["image_size"], "text_length": sizes["context_length"]}
    if family == "clip_dense":
        task_options = clip.TASK_OPTIONS | {"text_length": sizes["context_length"]}
    return {"_name": name, **sizes, **options}, {"_name": DEFAULT_TASKS[family], **task_options}, recorded


def published_architecture(weights: dict, where: str) -> tuple[str, str, dict]:
    """(registered model, named architecture, its options) of a file that does not say it, from its weights.

    Raises:
        CheckpointError: the weights are of no method here.
    """
    from ofaseg.models import clip_dense
    from ofaseg.models import freeseg as freeseg_model
    from ofaseg.models import ifseg as segofa
    from ofaseg.models import simseg as simseg_model

    if is_fusioner(weights):
        name, options = fusioner.infer_architecture(weights, where)
        return "fusioner", name, options
    if freeseg.is_freeseg(freeseg_entries(weights)):
        name, options = freeseg.infer_architecture(freeseg_entries(weights), where)
        return "freeseg", name, freeseg_model.ARCHITECTURES[name] | options
    if is_clip(weights):
        name, options = clip.infer_architecture(weights, where)
        return "clip_dense", name, clip_dense.ARCHITECTURES[name] | options
    if simseg.is_simseg(weights):
        name = simseg.infer_architecture(weights, where)
        return "simseg", name, simseg_model.ARCHITECTURES[name]
    name = infer_architecture(weights, where)
    return "segofa", name, segofa.ARCHITECTURES[name]


def _known_model(name: Optional[str]) -> bool:
    from fairseq.models import ARCH_MODEL_REGISTRY

    return name in ARCH_MODEL_REGISTRY


def _model_dataclass(name: str):
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

    name = ARCH_MODEL_NAME_REGISTRY.get(name, name)
    return name, MODEL_DATACLASS_REGISTRY[name]


def _task_dataclass(name: str, model: str):
    """The task recorded if it segments, else the one for the kind of `model` (a pretrained model is used for segmentation)."""
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    if not hasattr(TASK_REGISTRY.get(name), "predict_batch"):
        name = DEFAULT_TASKS[model]
    return name, TASK_DATACLASS_REGISTRY[name]


def _merged(find, options: dict, overrides: dict) -> tuple[str, dict]:
    """Registered name and all option values: defaults, then the recorded ones, then `overrides`, which have to be of the options' types."""
    name, dataclass_ = find(options.get("_name"))
    _check_values(dataclass_, overrides)
    fields = [f.name for f in dataclasses.fields(dataclass_) if f.name != "_name"]
    merged = {key: options[key] for key in fields if key in options}
    merged |= {key: overrides[key] for key in fields if key in overrides}
    defaults = vars(dataclass_())
    return name, {key: merged.get(key, defaults[key]) for key in fields}


def _warn_of_other_split(recorded: dict, overrides: dict, path: Path) -> None:
    """A warning when other classes count as held out than in training."""
    for key in ("benchmark", "fold", "novel_classes", "base_classes"):
        if key in overrides and key in recorded and str(overrides[key]) != str(recorded[key]):
            told = f"{path}: trained with {key}={recorded[key]}, read with {key}={overrides[key]}"
            logger.warning("%s: classes that now count as novel may have been trained on", told)


def _check_values(dataclass_, overrides: dict) -> None:
    """Raises CheckpointError for a value that the option of its name cannot have; unknown names are left alone."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ValidationError

    options = OmegaConf.structured(dataclass_)
    for key, value in overrides.items():
        if key in options and isinstance(value, str | int | float):
            try:
                options[key] = value
            except ValidationError as error:
                raise CheckpointError(f"option {key}: {str(error).splitlines()[0]}; correct --override {key}={value}") from error


def _with_parent(groups: dict):
    """A DictConfig whose groups can refer to ``common``."""
    from omegaconf import OmegaConf

    return OmegaConf.create({"common": {"seed": 1}, **groups}, flags={"allow_objects": True})


def _tokenizer_folder(recorded: str, path: Path) -> str:
    """The tokenizer's folder: as recorded, else beside the checkpoint, else among the assets of the package."""
    name = Path(recorded or "").name
    candidates = [Path(recorded)] if recorded else []
    candidates += [path.parent / name, path.parent / "bpe", path.parent, ASSETS / name] if name else [path.parent / "bpe", path.parent]
    for folder in candidates:
        if any((folder / file).is_file() for file in ("dict.txt", "gpt2_dict.txt")) or any(folder.glob("*.model")):
            return str(folder)
    return recorded or ""


def _word_pieces(recorded: str, path: Path) -> str:
    """vocab.txt of the text tower, or its folder: as recorded, else beside the checkpoint, else the asset of the package that was recorded.

    Raises:
        CheckpointError: a file is recorded and nowhere to be found; another one would cut texts into the wrong pieces.
    """
    recorded = "" if recorded == "???" else recorded or ""
    places, parts = [path.parent / "vocab.txt"], Path(recorded).parts
    if recorded:
        places = [Path(recorded), path.parent / Path(recorded).name, *places]
    if "assets" in parts:
        places.append(ASSETS.joinpath(*parts[parts.index("assets") + 1 :]))
    found = next((place for place in places if place.is_file() or (place / "vocab.txt").is_file()), None)
    if found is None and recorded:
        raise CheckpointError(
            f"{path}: its word pieces {recorded} are not there any more; copy the file beside the checkpoint, "
            "or name it with --override bert_vocab=FILE"
        )
    return str(found or path.parent)


def _merges(recorded: str, path: Path) -> str:
    """The merges of CLIP's tokenizer: as recorded, else beside the checkpoint, else "" for those inside open_clip_torch."""
    places = (Path(recorded), path.parent / Path(recorded).name)
    return str(next((place for place in places if place.exists()), ""))


def _recorded_file(recorded: str, path: Path) -> str:
    """A file that a run was trained with: as recorded, else beside the checkpoint."""
    beside = path.parent / Path(recorded).name
    return str(beside) if beside.is_file() and not Path(recorded).is_file() else recorded


def _build_task(name: str, options: dict, class_names: Optional[str], recorded: Optional[ClassVocabulary], path: Path, shards_given: bool):
    """The task, with the classes to predict; `shards_given`: the data folder is not just what the run was trained on."""
    from fairseq.dataclass.utils import merge_with_parent
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    task_class = TASK_REGISTRY[name]
    if options.get("data") in (None, "???"):
        options["data"] = ""
    options["pretrained"] = ""  # the weights come from this checkpoint, wherever the run once started
    trained_names = options.pop("class_names", "")
    options["class_names"] = class_names or ""
    config = merge_with_parent(TASK_DATACLASS_REGISTRY[name](), _with_parent({"task": {**options, "_name": name}}).task)
    vocabulary = _vocabulary(task_class, config, trained_names, recorded, path, shards_given)
    return task_class(config, vocabulary)


def _vocabulary(
    task_class, config, trained_names: str, recorded: Optional[ClassVocabulary], path: Path, shards_given: bool
) -> ClassVocabulary:
    """The classes to predict: those given, else of the given shards, else recorded with the checkpoint, else of its shards."""
    from ofaseg.data.shards import load_vocabulary

    if config.class_names:
        if not shards_given:
            config.data = ""  # the names are free: the folder of the training run has no say, whether it still exists or not
        return task_class.resolve_vocabulary(config)
    folder = bool(config.data) and Path(config.data).is_dir()
    shards = load_vocabulary(config.data) if folder else None
    if recorded is not None and not (shards_given and folder):
        return recorded
    if recorded is not None and shards is None:  # TSV files without a word about their labels
        return dataclasses.replace(recorded, label_offset=config.label_offset, ignore_label=0 if config.label_offset else None)
    if recorded is not None and recorded.renames(shards):
        return shards.renamed(recorded.names)
    if shards is not None and (shards_given or not trained_names):
        return shards
    if trained_names:
        config.class_names = trained_names
        return task_class.resolve_vocabulary(config)
    raise CheckpointError(f"{path}: the checkpoint records no class names; give --class-names (a file or a comma-separated list)")

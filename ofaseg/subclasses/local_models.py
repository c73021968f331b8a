"""Models of the transformers library in local folders: opened without a download and without running their code."""

from pathlib import Path


def open_model(folder, model_class: str, kind: str, device="cpu"):
    """The tokenizer and the model, in evaluation mode, of a folder as `save_pretrained` writes it.

    Args:
        model_class: a class of transformers, such as "AutoModel".
        kind: what the model should be, for messages.

    Raises:
        ValueError: there is no such model folder, or its files cannot be used (weights have to be safetensors).
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no model folder (no config.json in it); give one as written by save_pretrained")
    import transformers  # takes seconds: only for those who open one

    local = dict(local_files_only=True, trust_remote_code=False)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        model = getattr(transformers, model_class).from_pretrained(folder, use_safetensors=True, **local)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{folder}: not a usable {kind} ({error})") from error
    return tokenizer, model.to(device).eval()

"""Prompts: the words around class names."""

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

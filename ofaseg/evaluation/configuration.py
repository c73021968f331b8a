"""The configuration of a training run: read from fairseq's log, and shown."""

import ast
from html import escape
from typing import Optional, Sequence

HIGHLIGHTS = (
    ("architecture", "model", "_name"),
    ("task", "task", "_name"),
    ("criterion", "criterion", "_name"),
    ("training data", "task", "data"),
    ("label maps used in training", "task", "supervised"),
    ("starts from", "task", "pretrained"),
    ("photo side in pixels", "task", "patch_image_size"),
    ("optimizer", "optimizer", "_name"),
    ("learning rate", "optimization", "lr"),
    ("schedule", "lr_scheduler", "_name"),
    ("batch size per process", "dataset", "batch_size"),
    ("batches per update", "optimization", "update_freq"),
    ("processes", "distributed_training", "distributed_world_size"),
    ("epochs at most", "optimization", "max_epoch"),
    ("updates at most", "optimization", "max_update"),
    ("seed", "common", "seed"),
)
"""What a reader looks for first: title, option group, option."""

NO_LIMIT = (("epochs at most", "0"), ("updates at most", "0"))

OTHER_PROGRAMS = ("generation", "eval_lm", "interactive", "common_eval", "bmuf")
"""Groups that fairseq logs with every run, but that training does not read."""


def read_logged_configuration(line: str) -> Optional[dict[str, dict]]:
    """The option groups of the line that fairseq-train logs first (a Python dictionary); None for any other line.

    The text is parsed, never evaluated. Values that are no literals (enumerations print bare) become their text.
    """
    start = line.find("{'_name'")
    if start < 0 or "'task'" not in line:
        return None
    try:
        tree = ast.parse(line[start:].strip(), mode="eval")
    except (SyntaxError, RecursionError):  # a line cut off by a crash
        return None
    value = _value(tree.body)
    return option_groups(value) if isinstance(value, dict) else None


def option_groups(configuration: dict) -> dict[str, dict]:
    """The groups of a fairseq configuration: the entries that are dictionaries and not empty."""
    return {str(key): value for key, value in configuration.items() if isinstance(value, dict) and value}


def _value(node: ast.AST):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.unparse(key) if not isinstance(key, ast.Constant) else key.value: _value(item) for key, item in _items(node)}
    return ast.unparse(node)


def _items(node: ast.Dict):
    return [(key, value) for key, value in zip(node.keys, node.values) if key is not None]


def configuration_section(configurations: Sequence[tuple[str, dict[str, dict]]]) -> str:
    """HTML of the configurations (name, groups) of one or more runs; "" without any.

    The first one is shown; an option in which the others differ shows each distinct value, first run's first.
    """
    groups = [groups for _, groups in configurations if groups]
    if not groups:
        return ""
    facts = [(title, _shown(groups, group, key)) for title, group, key in HIGHLIGHTS]
    rows = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in facts if text and (title, text) not in NO_LIMIT)
    runs = f'<p class="muted">{len(groups)} runs; where they differ, every value is shown.</p>' if len(groups) > 1 else ""
    return f'<h2>Configuration</h2>{runs}<div class="card"><dl class="facts">{rows}</dl>{_all_options(groups)}</div>'


def _shown(groups: Sequence[dict[str, dict]], group: str, key: str) -> str:
    """The distinct values of an option over the runs, joined; "" where it is unset everywhere."""
    texts = [_text(found.get(group, {}).get(key)) for found in groups]
    return " | ".join(dict.fromkeys(text for text in texts if text))


def _text(value) -> str:
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _all_options(groups: Sequence[dict[str, dict]]) -> str:
    """Every option of every group, folded away."""
    parts = []
    for group in dict.fromkeys(name for found in groups for name in found if name not in OTHER_PROGRAMS):
        keys = dict.fromkeys(key for found in groups for key in found.get(group, {}))
        rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(_shown(groups, group, key)) or '–'}</td></tr>" for key in keys)
        parts.append(f'<h3>{escape(group)}</h3><table class="options"><tbody>{rows}</tbody></table>')
    return f"<details><summary>All options</summary>{''.join(parts)}</details>"

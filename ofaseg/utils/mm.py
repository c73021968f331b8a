"""The one door to mmcv and mmsegmentation, which are optional (extra ``mm``) and used where they are imported only.

mmsegmentation imports mmcv's compiled operators at import time although metrics, data transforms, class names and
palettes never call them. With mmcv-lite, which has none, a placeholder stands in: it imports, and names what is missing
when an operator is really called. With full mmcv installed nothing is replaced.
"""

import importlib.util
import sys
import types


class _MissingOperators(types.ModuleType):
    """Stands in for ``mmcv._ext``: any operator can be looked up, none can be run."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise ImportError(f"mmcv operator {name!r} needs the full mmcv package; mmcv-lite is installed")

        return missing


def has_mmseg() -> bool:
    """Whether mmsegmentation, mmengine and some mmcv are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("mmseg", "mmengine", "mmcv"))


def require_mmseg():
    """Imports and returns ``mmseg``, with the placeholder for mmcv's operators where they do not exist.

    For whoever compares with its metrics or reads its palettes; nothing else here needs the package.

    Raises:
        ImportError: the packages of the extra ``mm`` are not installed.
    """
    if not has_mmseg():
        raise ImportError("mmsegmentation is not installed; install the extra: pip install 'ofaseg[mm]'")
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _MissingOperators("mmcv._ext")
    import mmseg
    import mmseg.evaluation  # noqa: F401

    return mmseg

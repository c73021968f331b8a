"""Large packages that modules import for a function or two, imported when one of these is first used.

fairseq imports scikit-learn and SciPy for metrics of words and sounds, and Weights & Biases for a progress bar that few
runs ask for: more than two seconds of every command's start.
"""

import contextlib
import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Iterator, Mapping, Sequence


class StandIn(ModuleType):
    """A module that is imported once something in it is used.

    While it stands in `sys.modules`, a `from ... import name` gets a function that imports the module when it is called.
    """

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is not self:
            return getattr(importlib.import_module(self.__name__), name)

        def function(*args, **kwargs):
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return function


@contextlib.contextmanager
def standing_in(names: Sequence[str]) -> Iterator[None]:
    """Context manager in which the modules `names` (a package before its parts) need no import.

    Those that are imported already are themselves, those that are not installed are missing as ever.
    """
    names = [name for name in names if name not in sys.modules and find_spec(name.partition(".")[0]) is not None]
    modules = {name: StandIn(name) for name in names}
    for name, module in modules.items():
        package, _, part = name.rpartition(".")
        if package in modules:
            setattr(modules[package], part, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class LateImports(MetaPathFinder):
    """For `sys.meta_path`: runs each module of `wanted` while the modules it maps to are stood in for."""

    def __init__(self, wanted: Mapping[str, Sequence[str]]):
        self.wanted = wanted

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.wanted:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._without(spec.loader.exec_module, self.wanted[fullname])
        return spec

    @staticmethod
    def _without(execute, names: Sequence[str]):
        def exec_module(module: ModuleType) -> None:
            with standing_in(names):
                execute(module)

        return exec_module

"""How SimSeg chooses candidate classes on each dataset (Yi et al., CVPR 2023), as data beside this module."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Optional

_SETTINGS = Path(__file__).parent / "settings" / "simseg.json"


class SettingsError(ValueError):
    """No settings of that name, or a file of settings that cannot be used; the message lists what there is."""


@dataclass(frozen=True)
class ZeroShotSettings:
    """The candidate classes of a photo, from the scores (K,) of its embedding with the class embeddings.

    Attributes:
        top_m: the threshold is taken over the `top_m` best scores (all of them where there are fewer classes); at least 2.
        candidates: of these, so many of the best classes may get a mask; 1..top_m.
        std_factor: the threshold is mean + `std_factor` * unbiased standard deviation of the best scores; 0 or more.
        background_class: class id that gets no mask and stands where no other class does, None without one. Among the candidates
            it takes a place.
    """

    top_m: int
    candidates: int
    std_factor: float
    background_class: Optional[int]


def load_settings(name: str, path=_SETTINGS) -> ZeroShotSettings:
    """The settings of a dataset, by its name in `data_prep`.

    Args:
        path: a JSON object of dataset name -> the attributes of `ZeroShotSettings`.

    Raises:
        SettingsError: an unknown name, a file that is no such object, or a value outside its range.
    """
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: the settings cannot be read ({error}); give a JSON object of dataset names") from error
    if not isinstance(known, dict) or name not in known:
        names = ", ".join(known) if isinstance(known, dict) else "nothing"
        raise SettingsError(f"no zero-shot settings named {name!r} in {path}; it has {names}")
    return _checked(known[name], f"{path}, {name}")


def _checked(values, where: str) -> ZeroShotSettings:
    expected = [field.name for field in fields(ZeroShotSettings)]
    if not isinstance(values, dict) or sorted(values) != sorted(expected):
        raise SettingsError(f"{where}: expected the keys {', '.join(expected)}; correct the entry")
    settings = ZeroShotSettings(**values)
    ranges = {
        "top_m": _is_number(settings.top_m, int) and settings.top_m >= 2,
        "candidates": _is_number(settings.candidates, int)
        and _is_number(settings.top_m, int)
        and 1 <= settings.candidates <= settings.top_m,
        "std_factor": _is_number(settings.std_factor, int | float) and 0 <= settings.std_factor < float("inf"),
        "background_class": settings.background_class is None
        or (_is_number(settings.background_class, int) and settings.background_class >= 0),
    }
    for key, is_right in ranges.items():
        if not is_right:
            raise SettingsError(f"{where}: {key} is {values[key]!r}, outside its range; see ZeroShotSettings")
    return settings


def _is_number(value, kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

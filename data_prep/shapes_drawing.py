"""Textures and figures of the drawn world, as implicit functions in numpy.

Colours are float RGB in 0..1. A figure is a function of (u, v), coordinates in its own frame (u right, v down, about -1..1), and
returns layers (mask, colour name) painted in order; the colour "body" is the object's own, "dark" a darker shade of it.
"""

import functools
from typing import NamedTuple

import numpy as np

SIDE = 96
"""Height and width of a scene in pixels."""
BACKGROUNDS = ("sky", "grass", "sand", "water", "wall")
COLOURS = {
    "red": (0.82, 0.14, 0.13),
    "orange": (0.93, 0.52, 0.12),
    "yellow": (0.94, 0.85, 0.20),
    "green": (0.16, 0.50, 0.16),
    "blue": (0.15, 0.25, 0.78),
    "purple": (0.50, 0.20, 0.62),
    "pink": (0.95, 0.52, 0.70),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.94, 0.94, 0.94),
    "grey": (0.50, 0.50, 0.52),
}
_FIXED = COLOURS | {"black": (0.08, 0.08, 0.09), "pane": (0.62, 0.80, 0.90)}
_YS, _XS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
RADIUS_RANGE = (10.0, 23.0)


@functools.cache
def _upsampling(cells: int) -> np.ndarray:
    """(SIDE, cells) bilinear interpolation matrix."""
    positions = np.linspace(0, cells - 1, SIDE)
    low = np.minimum(positions.astype(int), cells - 2)
    matrix = np.zeros((SIDE, cells), dtype=np.float32)
    matrix[np.arange(SIDE), low] = 1 - (positions - low)
    matrix[np.arange(SIDE), low + 1] = positions - low
    return matrix


def noise(rng: np.random.Generator, cells=(4, 12, 36), weights=(1.0, 0.6, 0.4)) -> np.ndarray:
    """(SIDE, SIDE) smooth noise of about unit variance, a weighted sum over several grid sizes."""
    total = np.zeros((SIDE, SIDE), dtype=np.float32)
    for n, weight in zip(cells, weights, strict=True):
        up = _upsampling(n)
        total += weight * (up @ rng.standard_normal((n, n), dtype=np.float32) @ up.T)
    return total / float(np.linalg.norm(weights)) * 1.5


def _tint(base, shade: np.ndarray, rng: np.random.Generator, jitter: float = 0.05) -> np.ndarray:
    """(SIDE, SIDE, 3): a jittered base colour times (1 + shade)."""
    colour = np.clip(np.asarray(base) + rng.uniform(-jitter, jitter, 3), 0, 1)
    return (colour.astype(np.float32) * (1 + shade)[..., None]).astype(np.float32)


def _sky(rng):
    clouds = np.clip(noise(rng, (3, 7, 20)) - rng.uniform(0.0, 0.8), 0, 1)[..., None]
    blue = _tint((0.45, 0.66, 0.92), 0.15 * (_YS / SIDE - 0.3), rng)
    return blue * (1 - 0.8 * clouds) + 0.95 * 0.8 * clouds


def _grass(rng):
    return _tint((0.30, 0.58, 0.20), 0.10 * noise(rng) + 0.20 * rng.standard_normal((SIDE, SIDE), dtype=np.float32), rng)


def _sand(rng):
    ripples = 0.05 * np.sin(_YS * rng.uniform(0.5, 0.8) + 1.2 * noise(rng, (3, 6, 12)))
    return _tint((0.86, 0.74, 0.50), ripples + 0.05 * noise(rng, (6, 24, 48)), rng)


def _water(rng):
    waves = np.sin(_YS * rng.uniform(0.6, 1.0) + 2.0 * noise(rng, (4, 8, 16)) + rng.uniform(0, 6))
    return _tint((0.14, 0.42, 0.62), 0.14 * waves + 0.06 * noise(rng), rng)


def _wall(rng):
    height = rng.uniform(6, 9)
    width = height * rng.uniform(1.8, 2.4)
    row = np.floor(_YS / height)
    joints = (np.mod(_YS, height) < 1.3) | (np.mod(_XS + 0.5 * width * np.mod(row, 2) + rng.uniform(0, width), width) < 1.3)
    bricks = _tint((0.62, 0.34, 0.27), 0.08 * noise(rng, (8, 16, 40)), rng)
    return np.where(joints[..., None], np.float32(0.72) + 0.03 * noise(rng)[..., None], bricks)


_TEXTURES = {"sky": _sky, "grass": _grass, "sand": _sand, "water": _water, "wall": _wall}


def draw_background(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(image (SIDE,SIDE,3) float, label_map (SIDE,SIDE) int32): ground textures and, with probability 0.8, a band above."""
    grounds = list(rng.permutation(("grass", "sand", "water"))[: rng.integers(1, 3)])
    image = _TEXTURES[grounds[0]](rng)
    label_map = np.full((SIDE, SIDE), BACKGROUNDS.index(grounds[0]), dtype=np.int32)
    if len(grounds) == 2:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.cos(angle) * (_XS - rng.uniform(0.3, 0.7) * SIDE) + np.sin(angle) * (_YS - rng.uniform(0.45, 0.8) * SIDE)
        along = -np.sin(angle) * _XS + np.cos(angle) * _YS
        part = across > rng.uniform(1, 5) * np.sin(along * rng.uniform(0.08, 0.2) + rng.uniform(0, 6))
        image = np.where(part[..., None], _TEXTURES[grounds[1]](rng), image)
        label_map[part] = BACKGROUNDS.index(grounds[1])
    if rng.random() < 0.8:
        above = "sky" if rng.random() < 0.6 else "wall"
        horizon = rng.uniform(0.22, 0.55) * SIDE
        bumps = rng.uniform(0, 3) if above == "sky" else 0.0
        edge = horizon + bumps * np.sin(_XS * rng.uniform(0.05, 0.15) + rng.uniform(0, 6)) + rng.uniform(-0.08, 0.08) * (_XS - SIDE / 2)
        part = _YS < edge
        image = np.where(part[..., None], _TEXTURES[above](rng), image)
        label_map[part] = BACKGROUNDS.index(above)
    return image.astype(np.float32), label_map


def _disc(u, v, x, y, rx, ry=None):
    return ((u - x) / rx) ** 2 + ((v - y) / (ry or rx)) ** 2 < 1


def _rect(u, v, x0, y0, x1, y1):
    return (u > x0) & (u < x1) & (v > y0) & (v < y1)


def _ball(u, v):
    return [(_disc(u, v, 0, 0, 0.9), "body"), (_disc(u, v, 0, 0, 0.9) & (np.abs(v - 0.25 * u) < 0.2), "dark")]


def _box(u, v):
    face = _rect(u, v, -0.85, -0.85, 0.85, 0.85)
    frame = face & ((np.abs(u) > 0.62) | (np.abs(v) > 0.62) | (np.abs(np.abs(u) - np.abs(v)) < 0.13))
    return [(face, "body"), (frame, "dark")]


def _tree(u, v):
    crown = _disc(u, v, 0, -0.42, 0.58) | _disc(u, v, -0.45, -0.08, 0.5) | _disc(u, v, 0.45, -0.08, 0.5)
    return [(_rect(u, v, -0.17, 0.1, 0.17, 1.0), "brown"), (crown, "body")]


def _house(u, v):
    roof = (v > -0.95) & (v < -0.1) & (np.abs(u) < 1.0 * (v + 0.95) / 0.85)
    body = _rect(u, v, -0.75, -0.1, 0.75, 0.9)
    return [(body, "body"), (roof, "grey"), (_rect(u, v, -0.55, 0.2, -0.1, 0.9), "black"), (_rect(u, v, 0.15, 0.15, 0.55, 0.5), "pane")]


def _car(u, v):
    cabin = (v > -0.5) & (v < 0.05) & (np.abs(u + 0.1) < 0.5 + 0.25 * (v + 0.5))
    pane = (v > -0.38) & (v < 0.0) & (np.abs(u + 0.1) < 0.4 + 0.25 * (v + 0.4)) & (np.abs(u + 0.1) > 0.06)
    wheels = _disc(u, v, -0.5, 0.42, 0.26) | _disc(u, v, 0.5, 0.42, 0.26)
    hubs = _disc(u, v, -0.5, 0.42, 0.1) | _disc(u, v, 0.5, 0.42, 0.1)
    return [(cabin | _rect(u, v, -1.0, -0.05, 1.0, 0.4), "body"), (pane, "pane"), (wheels, "black"), (hubs, "grey")]


def _star(u, v):
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    sector = np.abs(np.mod(angle / (2 * np.pi / 5) + 0.5, 1) - 0.5) * 2
    return [(radius < 0.98 - 0.6 * sector, "body")]


def _fish(u, v):
    body = _disc(u, v, -0.2, 0, 0.72, 0.45)
    tail = (u > 0.35) & (u < 0.98) & (np.abs(v) < 0.85 * (u - 0.25))
    fin = (np.abs(u + 0.1) < 0.12) & (np.abs(v) < 0.42)
    eye, pupil = _disc(u, v, -0.6, -0.1, 0.12), _disc(u, v, -0.62, -0.1, 0.06)
    return [(tail, "dark"), (body, "body"), (fin, "dark"), (eye, "white"), (pupil, "black")]


def _flower(u, v):
    radius, angle = np.hypot(u, v + 0.2), np.arctan2(u, -v - 0.2)
    petals = radius < 0.6 + 0.24 * np.cos(5 * angle)
    stem = _rect(u, v, -0.08, 0.1, 0.08, 1.0) | _disc(u, v, 0.22, 0.7, 0.24, 0.12)
    return [(stem, "green"), (petals, "body"), (radius < 0.24, "yellow")]


def _ring(u, v):
    radius = np.hypot(u, v)
    return [((radius < 0.92) & (radius > 0.52), "body"), (np.abs(radius - 0.72) < 0.07, "dark")]


def _mushroom(u, v):
    cap = _disc(u, v, 0, 0.1, 0.92, 0.95) & (v < 0.12)
    spots = cap & (_disc(u, v, -0.4, -0.25, 0.17) | _disc(u, v, 0.1, -0.5, 0.17) | _disc(u, v, 0.5, -0.12, 0.16))
    return [(_rect(u, v, -0.26, 0.0, 0.26, 0.95), "white"), (cap, "body"), (spots, "white")]


def _boat(u, v):
    hull = (v > 0.3) & (v < 0.8) & (np.abs(u) < 1.0 - 0.7 * (v - 0.3))
    sail = (v > -0.95) & (v < 0.18) & (u > 0.0) & (u < 0.65 * (v + 0.95))
    return [(hull, "body"), (sail, "white"), (_rect(u, v, -0.1, -1.0, 0.0, 0.3), "brown")]


def _moon(u, v):
    return [(_disc(u, v, 0, 0, 0.95) & ~_disc(u, v, 0.55, -0.1, 0.78), "body")]


OBJECTS = {
    "ball": (_ball, ("red", "blue", "green")),
    "box": (_box, ("brown", "blue", "orange")),
    "tree": (_tree, ("green", "orange", "yellow")),
    "house": (_house, ("red", "white", "yellow")),
    "car": (_car, ("red", "blue", "white")),
    "star": (_star, ("yellow", "white", "pink")),
    "fish": (_fish, ("orange", "blue", "purple")),
    "flower": (_flower, ("pink", "purple", "red")),
    "ring": (_ring, ("grey", "purple", "green")),
    "mushroom": (_mushroom, ("red", "brown", "pink")),
    "boat": (_boat, ("brown", "grey", "orange")),
    "moon": (_moon, ("yellow", "white", "grey")),
}


class PlacedObject(NamedTuple):
    """An object drawn on an empty scene: its words, radius in pixels, mask (SIDE,SIDE) bool and colours (SIDE,SIDE,3)."""

    kind: str
    colour: str
    radius: float
    mask: np.ndarray
    rgb: np.ndarray


def draw_object(rng: np.random.Generator) -> PlacedObject:
    """Draws a random object at a random place, size, rotation (up to 0.35 rad), mirror, colour and texture."""
    kind = str(rng.choice(list(OBJECTS)))
    figure, colours = OBJECTS[kind]
    colour = str(rng.choice(colours))
    radius = float(rng.uniform(*RADIUS_RANGE))
    x, y = rng.uniform(0.7 * radius, SIDE - 0.7 * radius, 2)
    angle, mirror = rng.uniform(-0.35, 0.35), rng.choice((-1.0, 1.0))
    dx, dy = (_XS - x) / radius, (_YS - y) / radius
    u = mirror * (np.cos(angle) * dx + np.sin(angle) * dy)
    v = -np.sin(angle) * dx + np.cos(angle) * dy
    body = np.clip(np.asarray(COLOURS[colour]) * rng.uniform(0.8, 1.15) + rng.uniform(-0.06, 0.06, 3), 0, 1)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    rgb = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
    for layer, name in figure(u, v):
        rgb[layer] = body if name == "body" else 0.6 * body if name == "dark" else _FIXED[name]
        mask |= layer
    shade = 1 - 0.12 * (u * rng.uniform(-1, 1) + v * rng.uniform(0, 1)) + _texture(u, v, rng)
    return PlacedObject(kind, colour, radius, mask, rgb * shade[..., None].astype(np.float32))


def _texture(u, v, rng):
    """Brightness pattern of an object: plain, striped or speckled."""
    style = rng.integers(0, 3)
    if style == 0:
        return np.zeros_like(u)
    if style == 1:
        angle = rng.uniform(0, np.pi)
        return 0.08 * np.sin((np.cos(angle) * u + np.sin(angle) * v) * rng.uniform(8, 14))
    return 0.07 * noise(rng, (12, 24, 48))


def light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One light for the scene: brightness, a soft gradient, a colour cast, pixel noise. Returns uint8 (SIDE,SIDE,3)."""
    gradient = 1 + 0.12 * (rng.uniform(-1, 1) * (_XS / SIDE - 0.5) + rng.uniform(-1, 1) * (_YS / SIDE - 0.5))
    cast = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image = image * (rng.uniform(0.75, 1.15) * gradient)[..., None] * cast
    image = image + 0.02 * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)

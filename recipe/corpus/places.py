"""Backgrounds: photographic panoramas and procedural places, as square RGB pictures.

A background is a function of a random generator alone and returns float32 [px, px, 3] in 0..1. Each place is one of
`STAGES` fixed backgrounds, so that a small model can learn all of them and has capacity left for the objects. This
module knows nothing of objects, captions or files (the panoramas are handed in).
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["PLACES", "PLAIN_COLORS", "PROCEDURAL", "Panorama", "draw_place"]

Rng = np.random.Generator
Panorama = np.ndarray
"""float32 [height, width, 3], linear light, equirectangular."""

PANORAMAS_OF = {
    "in a meadow": ("park", "sunrise"),
    "in a forest": ("forest", "blender-forest"),
    "in a city": ("city", "blender-city"),
    "in a room": ("apartment", "blender-interior", "lobby"),
    "in a workshop": ("workshop", "warehouse"),
}
STAGES = 8
"""Fixed backgrounds of each place."""
DEPTH_OF_FIELD = 0.025
"""Radius of the Gaussian blur of panoramas, as a share of the picture's side: their texture cannot be learned, and
without the blur most of the denoiser's loss was spent on it."""
BRIGHTNESS = (0.94, 1.05)
"""Factor on all colors of a stage."""
VIEW_DEGREES = 72
"""Field of view into a panorama."""
PLAIN_COLORS = {
    "white": (0.95, 0.95, 0.95),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.08, 0.08, 0.09),
    "red": (0.82, 0.15, 0.15),
    "orange": (0.95, 0.58, 0.15),
    "yellow": (0.97, 0.87, 0.3),
    "green": (0.25, 0.65, 0.3),
    "blue": (0.2, 0.4, 0.85),
    "purple": (0.55, 0.3, 0.7),
    "pink": (0.97, 0.65, 0.75),
}


def _panorama_view(panorama: Panorama, px: int, rng: Rng) -> np.ndarray:
    """Look into a panorama in a random direction a little below the horizon, with a random exposure."""
    yaw, pitch = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-12, -4))
    half = np.tan(np.radians(VIEW_DEGREES) / 2)
    axis = (np.arange(px) + 0.5) / px * 2 - 1
    x, y = np.meshgrid(axis * half, -axis * half)
    norm = np.sqrt(x * x + y * y + 1)
    dy = (y * np.cos(pitch) + np.sin(pitch)) / norm
    dz = (np.cos(pitch) - y * np.sin(pitch)) / norm
    longitude = np.arctan2(x / norm, dz) + yaw
    height, width = panorama.shape[:2]
    column = (longitude / (2 * np.pi) % 1) * width - 0.5
    row = np.clip((0.5 - np.arcsin(np.clip(dy, -1, 1)) / np.pi) * height - 0.5, 0, height - 1.001)
    c0, r0 = np.floor(column).astype(int), np.floor(row).astype(int)
    fc, fr = (column - c0)[..., None], (row - r0)[..., None]
    top = panorama[r0, c0 % width] * (1 - fc) + panorama[r0, (c0 + 1) % width] * fc
    bottom = panorama[r0 + 1, c0 % width] * (1 - fc) + panorama[r0 + 1, (c0 + 1) % width] * fc
    linear = top * (1 - fr) + bottom * fr
    linear *= rng.uniform(0.3, 0.42) / max(float(np.median(linear.mean(-1))), 1e-3)
    return np.clip(1.3 * linear / (1 + linear), 0, 1).astype(np.float32) ** (1 / 2.2)


def _noise(px: int, rng: Rng, *, cells: tuple[int, int], octaves: int = 3) -> np.ndarray:
    """Smooth noise in -1..1, [px, px, 1]; `cells` (rows, columns) sets the coarsest grain."""
    total = np.zeros((px, px), np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, (cells[0] << octave, cells[1] << octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((px, px), Image.Resampling.BICUBIC)) / (1 << octave)
    return (total / 1.75)[..., None]


def _gradient(px: int, top: tuple[float, ...], bottom: tuple[float, ...]) -> np.ndarray:
    t = np.linspace(0, 1, px, dtype=np.float32)[:, None, None]
    return np.broadcast_to(_rgb(top) * (1 - t) + _rgb(bottom) * t, (px, px, 3)).copy()


def _rgb(colors: object) -> np.ndarray:
    return np.array(colors, dtype=np.float32)


def _jitter(color: tuple[float, ...], rng: Rng, amount: float = 0.06) -> tuple[float, ...]:
    return tuple(np.clip(np.array(color) + rng.uniform(-amount, amount, 3), 0, 1))


def _horizon(px: int, rng: Rng, low: float = 0.38, high: float = 0.55, *, roughness: float = 0.0) -> np.ndarray:
    """Return a boolean mask [px, px, 1] of what lies below the horizon."""
    level = rng.uniform(low, high) * px
    line = level + roughness * px * _noise(px, rng, cells=(1, 4))[0, :, 0]
    return (np.arange(px)[:, None] > line[None, :])[..., None]


def _beach(px: int, rng: Rng) -> np.ndarray:
    sky = _gradient(px, _jitter((0.45, 0.7, 0.95), rng), _jitter((0.8, 0.92, 1.0), rng))
    sea = _gradient(px, (0.1, 0.45, 0.7), _jitter((0.3, 0.75, 0.8), rng)) + 0.06 * _noise(px, rng, cells=(24, 3))
    sand = _rgb(_jitter((0.9, 0.8, 0.58), rng)) + 0.06 * _noise(px, rng, cells=(12, 12))
    picture = np.where(_horizon(px, rng, 0.3, 0.42), sea, sky)
    return np.where(_horizon(px, rng, 0.5, 0.62, roughness=0.02), sand, picture)


def _snow(px: int, rng: Rng) -> np.ndarray:
    sky = _gradient(px, _jitter((0.62, 0.7, 0.8), rng), (0.85, 0.88, 0.93))
    ground = _rgb((0.93, 0.95, 0.98)) + 0.05 * _noise(px, rng, cells=(4, 3))
    picture = np.where(_horizon(px, rng, roughness=0.04), ground, sky)
    for _ in range(rng.integers(30, 90)):
        y, x = rng.integers(0, px, 2)
        picture[y : y + 2, x : x + 2] = 1.0
    return picture


def _night(px: int, rng: Rng) -> np.ndarray:
    sky = _gradient(px, _jitter((0.02, 0.03, 0.12), rng, 0.02), _jitter((0.1, 0.1, 0.3), rng, 0.04))
    stars = rng.random((px, px, 1)) > 0.994
    sky = np.where(stars, rng.uniform(0.6, 1.0, (px, px, 1)), sky)
    if rng.random() < 0.6:
        y, x, r = rng.uniform(0.08, 0.25) * px, rng.uniform(0.1, 0.9) * px, rng.uniform(0.05, 0.09) * px
        rows, columns = np.mgrid[:px, :px]
        sky = np.where(((rows - y) ** 2 + (columns - x) ** 2 < r * r)[..., None], _rgb((0.98, 0.96, 0.8)), sky)
    ground = _rgb(_jitter((0.06, 0.09, 0.12), rng, 0.03)) + 0.03 * _noise(px, rng, cells=(8, 8))
    return np.where(_horizon(px, rng, 0.5, 0.65, roughness=0.05), ground, sky)


def _garden(px: int, rng: Rng) -> np.ndarray:
    hedge = _rgb(_jitter((0.15, 0.4, 0.15), rng)) + 0.12 * _noise(px, rng, cells=(10, 10))
    lawn = _rgb(_jitter((0.4, 0.68, 0.25), rng)) + 0.07 * _noise(px, rng, cells=(16, 10))
    picture = np.where(_horizon(px, rng, 0.45, 0.58, roughness=0.02), lawn, hedge)
    palette = _rgb([(0.9, 0.2, 0.3), (0.98, 0.8, 0.2), (0.95, 0.6, 0.8), (0.98, 0.98, 0.95), (0.6, 0.4, 0.85)])
    for _ in range(rng.integers(25, 50)):
        y, x = int(rng.uniform(0.2, 0.62) * px), rng.integers(0, px)
        size = rng.integers(2, 5)
        picture[y : y + size, x : x + size] = palette[rng.integers(len(palette))]
    return picture


def _desert(px: int, rng: Rng) -> np.ndarray:
    picture = _gradient(px, _jitter((0.35, 0.6, 0.9), rng), _jitter((0.98, 0.85, 0.65), rng))
    for i in range(3):
        dune = _rgb(_jitter((0.93 - 0.1 * i, 0.66 - 0.09 * i, 0.36 - 0.06 * i), rng, 0.03))
        shade = dune + 0.05 * _noise(px, rng, cells=(14, 3))
        picture = np.where(_horizon(px, rng, 0.36 + 0.13 * i, 0.46 + 0.13 * i, roughness=0.09), shade, picture)
    return picture


def _mountains(px: int, rng: Rng) -> np.ndarray:
    picture = _gradient(px, _jitter((0.4, 0.62, 0.92), rng), (0.85, 0.92, 0.98))
    columns = np.arange(px)
    for i in range(3):
        ridge = np.full(px, (0.62 + 0.06 * i) * px)
        for _ in range(3):
            peak, top, slope = rng.uniform(0, px), rng.uniform(0.12, 0.4) * px + i * 0.12 * px, rng.uniform(0.8, 1.6)
            ridge = np.minimum(ridge, top + slope * np.abs(columns - peak))
        rows = np.arange(px)[:, None]
        rock = _rgb(_jitter((0.45 - 0.06 * i, 0.47 - 0.05 * i, 0.55 - 0.07 * i), rng, 0.03))
        rock = rock + 0.05 * _noise(px, rng, cells=(10, 10))
        picture = np.where((rows > ridge)[..., None], rock, picture)
        cap = (rows > ridge) & (rows < ridge + 0.07 * px) & (rows < 0.42 * px)
        picture = np.where(cap[..., None], _rgb((0.96, 0.97, 1.0)), picture)
    meadow = _rgb(_jitter((0.36, 0.55, 0.28), rng)) + 0.05 * _noise(px, rng, cells=(12, 8))
    return np.where(_horizon(px, rng, 0.62, 0.7, roughness=0.02), meadow, picture)


def _underwater(px: int, rng: Rng) -> np.ndarray:
    picture = _gradient(px, _jitter((0.25, 0.75, 0.88), rng), _jitter((0.02, 0.2, 0.45), rng))
    columns, rows = np.meshgrid(np.arange(px), np.arange(px))
    rays = np.sin((columns + rng.uniform(-0.6, 0.6) * rows) / px * rng.uniform(12, 25) + rng.uniform(0, 6))
    picture += 0.07 * (rays * (1 - rows / px))[..., None]
    for _ in range(rng.integers(4, 14)):
        y, x, r = rng.uniform(0, px), rng.uniform(0, px), rng.uniform(1.5, 5)
        distance = np.sqrt((rows - y) ** 2 + (columns - x) ** 2)
        picture[np.abs(distance - r) < 0.8] = (0.8, 0.95, 1.0)
    bottom = _rgb(_jitter((0.35, 0.5, 0.5), rng)) + 0.06 * _noise(px, rng, cells=(10, 10))
    return np.where(_horizon(px, rng, 0.78, 0.9, roughness=0.04), bottom, picture)


def _plain(color: str, px: int, rng: Rng) -> np.ndarray:
    base = _jitter(PLAIN_COLORS[color], rng, 0.05)
    return _gradient(px, base, tuple(np.array(base) * rng.uniform(0.82, 1.0)))


PROCEDURAL: dict[str, Callable[[int, Rng], np.ndarray]] = {
    "on the beach": _beach,
    "in the snow": _snow,
    "at night": _night,
    "in a garden": _garden,
    "in the desert": _desert,
    "in the mountains": _mountains,
    "under water": _underwater,
}
PLACES = (*PROCEDURAL, *PANORAMAS_OF)
"""The phrases that name a place in a caption (plain backgrounds are "on a {color} background")."""


def draw_place(phrase: str, px: int, rng: Rng, panoramas: Mapping[str, Panorama]) -> np.ndarray:
    """Draw the background that a caption phrase names.

    Args:
        phrase: one of `PLACES`, or "on a {color} background" with one of `PLAIN_COLORS`.
        px: side of the picture.
        rng: chooses the stage, mirrors it in half of the cases, and sets its brightness.
        panoramas: by name, those of `PANORAMAS_OF`.

    Returns:
        float32 [px, px, 3] in 0..1.
    """
    stage = np.random.default_rng([sum(map(ord, phrase)), int(rng.integers(STAGES))])
    if phrase in PROCEDURAL:
        picture = PROCEDURAL[phrase](px, stage)
    elif phrase in PANORAMAS_OF:
        picture = _blurred(_panorama_view(panoramas[str(stage.choice(PANORAMAS_OF[phrase]))], px, stage))
    else:
        return np.clip(_plain(phrase.removesuffix(" background").split()[-1], px, rng), 0, 1).astype(np.float32)
    picture = picture * rng.uniform(*BRIGHTNESS)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return np.clip(picture, 0, 1).astype(np.float32)


def _blurred(picture: np.ndarray) -> np.ndarray:
    pixels = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(len(picture) * DEPTH_OF_FIELD)), np.float32) / 255

"""Paint backgrounds: sixteen procedural textures, each with its own colours and grain.

Painters take coordinate grids in units of the frame's short side and return float32 RGB, 0-255, before clipping.
They interpolate by indexing, not by matrix products, so that pixels do not depend on the number of BLAS threads.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Grey = Float[np.ndarray, "row col"]
Image = Float[np.ndarray, "row col rgb"]
Number = int | float
Colour = tuple[Number, Number, Number]

FLOW_RATIOS: dict[str, tuple[float, float]] = {  # backgrounds that move: share of the short side per second, (x, y)
    "water": (0.1, 0.04),
    "clouds": (0.09, 0.0),
    "fog": (0.07, 0.02),
    "lava": (0.03, 0.07),
}


class Canvas:
    """Coordinates, noise and phases for painting a background."""

    def __init__(
        self, rng: np.random.Generator, rows: int, cols: int, side_px: int, phases: tuple[float, float]
    ) -> None:
        self.rng, self.rows, self.cols = rng, rows, cols
        self.x = (np.arange(cols, dtype=np.float32) / side_px)[None, :]
        self.y = (np.arange(rows, dtype=np.float32) / side_px)[:, None]
        self.phase_x, self.phase_y = phases

    def noise(self, cells_y: Number, cells_x: Number) -> Grey:
        """Draw smooth value noise in -1..1 with this many cells per short side."""
        grid_y, grid_x = self.y[:, 0] * cells_y, self.x[0] * cells_x
        values = self.rng.random((int(grid_y[-1]) + 2, int(grid_x[-1]) + 2), dtype=np.float32) * 2 - 1
        along_y = _lerp(values, grid_y)
        return _lerp(along_y.T, grid_x).T

    def clouds(self, cells: Number) -> Grey:
        """Draw four octaves of noise, about -1..1."""
        parts = [self.noise(cells * 2**k, cells * 2**k) * np.float32(0.5**k) for k in range(4)]
        return (parts[0] + parts[1] + parts[2] + parts[3]) * np.float32(0.75)

    def grain(self) -> Grey:
        """Draw independent noise per pixel, standard deviation 1."""
        return self.rng.standard_normal((self.rows, self.cols), dtype=np.float32)


def paint_background(name: str, canvas: Canvas) -> Image:
    """Paint the texture `name`, float32, 0-255."""
    return np.clip(_PAINTERS[name](canvas), 0, 255).astype(np.float32, copy=False)


def _lerp(values: Float[np.ndarray, "cell col"], at: Float[np.ndarray, " row"]) -> Float[np.ndarray, "row col"]:
    """Interpolate `values` at fractional row numbers."""
    low = at.astype(np.int64)
    share = (at - low)[:, None]
    share = share * share * (3 - 2 * share)  # no creases at the cell borders
    return values[low] * (1 - share) + values[low + 1] * share


def _tint(shade: Grey, colour: Colour) -> Image:
    """Multiply a colour by a grey texture around 1."""
    return shade[..., None] * np.asarray(colour, np.float32)


def _mix(share: Grey, low: Colour, high: Colour) -> Image:
    """Blend from `low` where `share` is 0 to `high` where it is 1."""
    return np.asarray(low, np.float32) + np.clip(share, 0, 1)[..., None] * (
        np.asarray(high, np.float32) - np.asarray(low, np.float32)
    )


def _sand(c: Canvas) -> Image:
    waves = np.sin(2 * np.pi * (8 * c.y + 1.5 * c.x * (c.phase_x - 0.5) + 0.5 * c.noise(2, 2)))
    return _tint(1 + 0.09 * waves + 0.045 * c.grain(), (216, 184, 128))


def _grass(c: Canvas) -> Image:
    return _tint(1 + 0.34 * c.noise(16, 60) + 0.18 * c.noise(5, 5) + 0.07 * c.grain(), (78, 150, 48))


def _water(c: Canvas) -> Image:
    waves = np.sin(2 * np.pi * (9 * c.y + 1.1 * c.noise(3, 5) + c.phase_y))
    return _mix(0.45 + 0.28 * waves + 0.15 * c.noise(14, 5), (8, 62, 140), (70, 160, 215))


def _brick(c: Canvas) -> Image:
    y = c.y / 0.105 + c.phase_y
    row = np.floor(y)
    x = c.x / 0.23 + 0.5 * (row % 2) + c.phase_x
    tone = 1 + 0.16 * np.sin(12.9 * row + 78.2 * np.floor(x)) + 0.05 * c.grain()
    mortar = (y - row < 0.13) | (x - np.floor(x) < 0.06)
    return np.where(mortar[..., None], _tint(1 + 0.04 * c.grain(), (196, 186, 176)), _tint(tone, (158, 68, 48)))


def _night(c: Canvas) -> Image:
    sky = _mix(0.4 + 0.5 * c.clouds(2), (6, 7, 28), (30, 26, 74))
    lit = c.rng.random((c.rows, c.cols), dtype=np.float32)
    stars = np.where(lit > 0.9945, np.float32(235), np.where(lit > 0.985, np.float32(110), np.float32(0)))
    large = lit > 0.999
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        stars = np.where(np.roll(large, (dy, dx), (0, 1)), np.float32(245), stars)
    return np.maximum(sky, stars[..., None])


def _snow(c: Canvas) -> Image:
    return _mix(0.6 + 0.55 * c.clouds(2.5) + 0.1 * c.grain(), (196, 212, 234), (250, 252, 255))


def _wood(c: Canvas) -> Image:
    y = c.y / 0.17 + c.phase_y
    plank = np.floor(y)
    rings = np.sin(2 * np.pi * (26 * c.y + 1.6 * c.noise(6, 1.3) + 0.6 * plank))
    tone = 1 + 0.11 * rings + 0.12 * np.sin(7.3 * plank) + 0.03 * c.grain()
    return _tint(np.where(y - plank < 0.06, np.float32(0.42), tone), (150, 98, 54))


def _checker(c: Canvas) -> Image:
    odd = (np.floor(c.x / 0.17 + c.phase_x) + np.floor(c.y / 0.17 + c.phase_y)) % 2
    return _tint(42 + 182 * odd + 5 * c.grain(), (1, 1, 1))


def _stripes(c: Canvas) -> Image:
    wave = c.x / 0.24 + c.phase_x + 0.02 * np.sin(2 * np.pi * (2 * c.y + c.phase_y))
    image = _mix((wave - np.floor(wave) < 0.5).astype(np.float32), (232, 214, 226), (134, 66, 148))
    return image * (1 + 0.03 * c.grain())[..., None]


def _clouds(c: Canvas) -> Image:
    return _mix(0.5 + 1.5 * (c.clouds(2.2) + 0.5 * (c.phase_x - 0.5)), (92, 154, 226), (250, 250, 252))


def _lava(c: Canvas) -> Image:
    heat = 1 - 2.6 * np.abs(c.clouds(3.2))
    glow = _mix(heat * 1.3, (46, 12, 8), (236, 74, 12))
    return glow + _mix((heat - 0.62) * 3, (0, 0, 0), (20, 140, 50))


def _fog(c: Canvas) -> Image:
    return _mix(0.5 + 0.6 * c.clouds(1.6) + 0.03 * c.grain(), (156, 161, 166), (200, 204, 206))


def _dots(c: Canvas) -> Image:
    x, y = c.x / 0.13 + c.phase_x, c.y / 0.13 + c.phase_y
    x = x + 0.5 * (np.floor(y) % 2)
    inside = (x - np.floor(x) - 0.5) ** 2 + (y - np.floor(y) - 0.5) ** 2 < 0.3**2
    return _mix(inside.astype(np.float32), (244, 226, 150), (44, 130, 132)) * (1 + 0.03 * c.grain())[..., None]


def _sunset(c: Canvas) -> Image:
    height = c.y + 0 * c.x + 0.09 * c.noise(7, 1.5) + 0.3 * (c.phase_y - 0.5)
    image = _mix(height / 0.55, (78, 44, 120), (226, 92, 74))
    return np.where((height > 0.55)[..., None], _mix((height - 0.55) / 0.45, (226, 92, 74), (255, 190, 90)), image)


def _forest(c: Canvas) -> Image:
    leaves = np.sin(5 * c.noise(9, 9) + 3 * c.noise(22, 22))
    return _mix(0.45 + 0.4 * leaves + 0.07 * c.grain(), (8, 30, 12), (46, 98, 40))


def _stone(c: Canvas) -> Image:
    x, y = c.x / 0.15 + c.phase_x + 0 * c.y, c.y / 0.15 + c.phase_y + 0 * c.x
    cell_x, cell_y = np.floor(x), np.floor(y)
    best, second, tone = np.full_like(x, 9), np.full_like(x, 9), np.zeros_like(x)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            seed = (cell_x + dx) * np.float32(12.7) + (cell_y + dy) * np.float32(31.1)
            off_x = cell_x + dx + 0.5 + 0.38 * np.sin(seed) - x
            off_y = cell_y + dy + 0.5 + 0.38 * np.cos(seed) - y
            far = off_x**2 + off_y**2
            second = np.minimum(second, np.maximum(best, far))
            tone = np.where(far < best, np.sin(3 * seed), tone)
            best = np.minimum(best, far)
    gap = np.sqrt(second) - np.sqrt(best) < 0.12
    return _tint(np.where(gap, np.float32(0.5), 1 + 0.17 * tone) + 0.04 * c.grain(), (132, 132, 136))


_PAINTERS: dict[str, Callable[[Canvas], Image]] = {
    "sand": _sand,
    "grass": _grass,
    "water": _water,
    "brick": _brick,
    "night": _night,
    "snow": _snow,
    "wood": _wood,
    "checker": _checker,
    "stripes": _stripes,
    "clouds": _clouds,
    "lava": _lava,
    "fog": _fog,
    "dots": _dots,
    "sunset": _sunset,
    "forest": _forest,
    "stone": _stone,
}

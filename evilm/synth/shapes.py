"""Compute shapes as signed distances: negative inside, in units of the object's radius, y downwards."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "frame row col"]


def shape_distance(shape: str, x: Field, y: Field) -> Field:
    """Compute each point's signed distance to the outline of `shape`; accurate near the outline."""
    return _DISTANCES[shape](x, y)


def _circle(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y) - np.float32(0.95)


def _square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.83)


def _polygon(x: Field, y: Field, num_sides: int, inner: float, turn: float = 0.0) -> Field:
    """Intersect the half-planes of a regular polygon; `inner` is the distance of a side from the centre."""
    far = np.full_like(x, -9)
    for k in range(num_sides):
        angle = turn + 2 * np.pi * k / num_sides
        np.maximum(far, x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)), out=far)
    return far - np.float32(inner)


def _triangle(x: Field, y: Field) -> Field:
    return _polygon(x, y - np.float32(0.12), 3, 0.58, np.pi / 2)


def _hexagon(x: Field, y: Field) -> Field:
    return _polygon(x, y, 6, 0.86)


def _diamond(x: Field, y: Field) -> Field:
    return (np.abs(x) * np.float32(1.55) + np.abs(y) * np.float32(0.88) - 1) * np.float32(0.56)


def _star(x: Field, y: Field) -> Field:
    """Fold the plane onto half of one of five points, whose outline is one line."""
    radius, wedge = np.sqrt(x * x + y * y), 2 * np.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - wedge * np.round(angle / np.float32(wedge)))
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    tip, dent = (1.12, 0.0), (0.5 * np.cos(wedge / 2), 0.5 * np.sin(wedge / 2))
    nx, ny = dent[1] - tip[1], tip[0] - dent[0]
    return (((px - tip[0]) * nx + (py - tip[1]) * ny) / np.hypot(nx, ny)).astype(np.float32)


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.73)) - np.float32(0.25)


def _cross(x: Field, y: Field) -> Field:
    far_x, far_y = np.abs(x), np.abs(y)
    upright = np.maximum(far_x - np.float32(0.32), far_y - np.float32(0.98))
    return np.minimum(upright, np.maximum(far_x - np.float32(0.98), far_y - np.float32(0.32)))


def _heart(x: Field, y: Field) -> Field:
    """Join two discs to the upper sides of a square on its tip."""
    y = y - np.float32(0.08)
    half = np.float32(0.6)
    a, b = (np.abs(x) + y) * np.float32(0.7071), (y - np.abs(x)) * np.float32(0.7071)
    tip = np.maximum(np.abs(a), np.abs(b)) - half
    return np.minimum(tip, np.sqrt(a * a + (b + half) ** 2) - half)


def _crescent(x: Field, y: Field) -> Field:
    bite = np.sqrt((x - np.float32(0.47)) ** 2 + y * y) - np.float32(0.8)
    return np.maximum(np.sqrt(x * x + y * y) - 1, -bite)


_DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "diamond": _diamond,
    "hexagon": _hexagon,
    "heart": _heart,
    "crescent": _crescent,
}

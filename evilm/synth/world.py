"""The world of the embedded corpus: scenes, objects, and the held-out combinations.

Lengths and positions are in units of the frame's short side, from the frame's centre, y downwards. Everything happens
within +-0.5, so a centre square crop shows everything in the caption. Time runs from 0 to 1.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evilm.seeds import named_rng
from evilm.synth.words import COLOURS, MOTIONS, SHAPES

T = TypeVar("T")
Triple = tuple[str, str, str]
"""Colour, shape and motion of one object."""
Point = tuple[float, float]

AXIS_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIAGONAL_STEPS = {"up_left": (-1, -1), "up_right": (1, -1), "down_left": (-1, 1), "down_right": (1, 1)}
STEPS = AXIS_STEPS | DIAGONAL_STEPS

_HELDOUT_RATIO = 0.1


@dataclass(frozen=True)
class ObjectSpec:
    """One object: its appearance, and its path from `start` to `end` (equal if it does not move)."""

    colour: str
    shape: str
    motion: str
    texture: str
    size: str
    radius: float
    start: Point
    end: Point
    phase: float
    """Free parameter of a motion (0-1): first angle, sense of rotation, start of a bounce."""

    @property
    def triple(self) -> Triple:
        """Return colour, shape and motion, which form a combination."""
        return (self.colour, self.shape, self.motion)


@dataclass(frozen=True)
class Scene:
    """A background and its objects; `objects[0]` is the main one."""

    background: str
    objects: tuple[ObjectSpec, ...]
    layout: str
    """solo, group, beside, overlap, pass, toward, away, follow or around."""
    relation: str = ""
    """Position of the main object relative to the second, for beside and overlap."""
    event: str = ""
    """brighter, darker or ''."""
    speed: str = ""
    """slow, fast or ordinary, for straight paths."""
    look: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Brightness factor, and two phases (0-1) of the background's texture."""

    @property
    def triples(self) -> frozenset[Triple]:
        """Return colour, shape and motion of every object."""
        return frozenset(item.triple for item in self.objects)


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Choose one of `options` uniformly."""
    return options[int(rng.integers(len(options)))]


def choose_weighted(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """Choose a key with probability proportional to its weight."""
    marks = np.cumsum(list(weights.values()))
    index = int(np.searchsorted(marks, rng.random() * marks[-1], side="right"))
    return list(weights)[min(index, len(weights) - 1)]


def heldout_triples(seed: int) -> tuple[Triple, ...]:
    """Choose a tenth of all combinations; no object of train or val has one, nor any second object of test."""
    triples = list(itertools.product(COLOURS, SHAPES, MOTIONS))
    order = named_rng("heldout", seed).permutation(len(triples))[: round(len(triples) * _HELDOUT_RATIO)]
    return tuple(triples[i] for i in sorted(order))

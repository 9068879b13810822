"""Sample scenes: a main object, an arrangement that suits its motion, a second object, a background."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilm.synth.words import CAMOUFLAGE, COLOURS, MOTIONS, SCENES, SHAPES
from evilm.synth.world import (
    AXIS_STEPS,
    DIAGONAL_STEPS,
    STEPS,
    ObjectSpec,
    Point,
    Scene,
    Triple,
    choose,
    choose_weighted,
)

IN_PLACE = ("still", "spin", "grow", "shrink", "blink", "shake", "appear", "vanish")
PLACE_SIGNS = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1)}

_SPEED_RATIOS = {"slow": 0.5, "": 0.78, "fast": 1.0}
_MOTION_WEIGHTS = {m: 1.4 if m in AXIS_STEPS else 0.5 if m in DIAGONAL_STEPS else 1.0 for m in MOTIONS}
# Ranges of size words, which do not overlap. Two objects have less room than one.
_RADII = {"small": (0.13, 0.15), "medium": (0.175, 0.195), "large": (0.24, 0.28)}
_PAIR_RADII = {"small": (0.13, 0.145), "medium": (0.17, 0.185), "large": (0.215, 0.235)}
_LAYOUT_WEIGHTS = {
    "axis": {"solo": 0.38, "group": 0.08, "beside": 0.14, "pass": 0.14, "toward": 0.08, "away": 0.07, "follow": 0.11},
    "diagonal": {"solo": 1.0},
    "in_place": {"solo": 0.42, "group": 0.08, "beside": 0.38, "overlap": 0.12},
    "sizing": {"solo": 0.5, "group": 0.1, "beside": 0.4},
    "bounce": {"solo": 0.55, "group": 0.1, "beside": 0.35},
    "orbit": {"solo": 0.45, "around": 0.55},
}


@dataclass(frozen=True)
class _Draft:
    """The choices made before objects are placed."""

    rng: np.random.Generator
    main: Triple
    background: str
    layout: str
    banned: frozenset[Triple]

    @property
    def motion(self) -> str:
        return self.main[2]


def sample_scene(rng: np.random.Generator, heldout: Sequence[Triple], want_heldout: bool) -> Scene:
    """Sample a scene whose main object has a held-out combination, or a scene without any."""
    banned = frozenset(heldout)
    main = choose(rng, heldout) if want_heldout else _draw_triple(rng, banned)
    background = choose(rng, [name for name in SCENES if main[0] not in CAMOUFLAGE[name]])
    layout = choose_weighted(rng, _LAYOUT_WEIGHTS[_motion_kind(main[2])])
    scene = _LAYOUTS[layout](_Draft(rng, main, background, layout, banned))
    dim = background in ("night", "forest")
    event = "" if dim else choose_weighted(rng, {"": 0.8, "brighter": 0.1, "darker": 0.1})
    look = (float(rng.uniform(0.88, 1.1)), float(rng.random()), float(rng.random()))
    return replace(scene, event=event, look=look)


def _motion_kind(motion: str) -> str:
    if motion in AXIS_STEPS:
        return "axis"
    if motion in DIAGONAL_STEPS:
        return "diagonal"
    if motion in ("grow", "shrink"):
        return "sizing"
    return motion if motion in ("bounce", "orbit") else "in_place"


def _draw_triple(rng: np.random.Generator, banned: frozenset[Triple]) -> Triple:
    while True:
        triple = (choose(rng, list(COLOURS)), choose(rng, list(SHAPES)), choose_weighted(rng, _MOTION_WEIGHTS))
        if triple not in banned:
            return triple


def _second(draft: _Draft, motion: str) -> Triple:
    """Draw the second object: of another colour and (mostly) shape than the main one, visible on the background."""
    rng = draft.rng
    colours = [c for c in COLOURS if c != draft.main[0] and c not in CAMOUFLAGE[draft.background]]
    shapes = [s for s in SHAPES if s != draft.main[1]]
    while True:
        shape = draft.main[1] if rng.random() < 0.15 else choose(rng, shapes)
        triple = (choose(rng, colours), shape, motion)
        if triple not in draft.banned:
            return triple


def _object(
    draft: _Draft, triple: Triple, size: tuple[str, float], start: Point, end: Point | None = None
) -> ObjectSpec:
    rng = draft.rng
    texture = choose_weighted(rng, {"plain": 0.64, "striped": 0.18, "dotted": 0.18})
    if triple[2] == "spin" and triple[1] in ("circle", "ring"):
        texture = "striped"  # a plain one would seem to stand still
    return ObjectSpec(*triple, texture, size[0], size[1], start, end or start, float(rng.random()))


def _size(rng: np.random.Generator, radii: Mapping[str, tuple[float, float]], motion: str = "") -> tuple[str, float]:
    """Draw a size word and a radius in its range; objects that grow or shrink are large at their largest."""
    size = "large" if motion in ("grow", "shrink") else choose(rng, list(radii))
    return size, float(rng.uniform(*radii[size]))


def _speed(draft: _Draft) -> str:
    return choose(draft.rng, list(_SPEED_RATIOS)) if draft.motion in STEPS else ""


def _path(draft: _Draft, radius: float, speed: str, spread: float = 1.0) -> tuple[Point, Point]:
    """Draw start and end of the main object's path; `spread` (0-1) bounds its distance from the middle."""
    rng, room = draft.rng, 0.49 - radius
    dx, dy = STEPS.get(draft.motion, (0, 0))
    free = room * 0.7 * spread
    if draft.motion in ("orbit", "bounce"):
        free *= 0.25  # their paths need the room
    x, y = float(rng.uniform(-free, free)), float(rng.uniform(-free, free))
    half = room * _SPEED_RATIOS[speed]
    return (-dx * half if dx else x, -dy * half if dy else y), (dx * half if dx else x, dy * half if dy else y)


def _solo(draft: _Draft) -> Scene:
    """Place one object anywhere, on a path whose length suits its speed."""
    size, speed = _size(draft.rng, _RADII, draft.motion), _speed(draft)
    item = _object(draft, draft.main, size, *_path(draft, size[1], speed))
    return Scene(draft.background, (item,), "solo", speed=speed)


def _group(draft: _Draft) -> Scene:
    """Place two or three equal objects in a row across their direction."""
    radius, num, speed = float(draft.rng.uniform(0.125, 0.14)), int(draft.rng.integers(2, 4)), _speed(draft)
    column = STEPS.get(draft.motion, (0, 0))[0] != 0
    start, end = _path(draft, radius, speed, spread=0.6)
    first = _object(draft, draft.main, ("small", radius), start, end)
    items = []
    for k in range(num):
        at = 0.31 * (k - (num - 1) / 2)  # the row stays centred: three objects fill the width
        ends = [(x, at) if column else (at, y) for x, y in (start, end)]
        items.append(replace(first, start=ends[0], end=ends[1]))
    return Scene(draft.background, tuple(items), "group", speed=speed)


def _beside(draft: _Draft) -> Scene:
    """Place two objects whose order along an axis never changes."""
    rng, step = draft.rng, STEPS.get(draft.motion, (0, 0))
    across_x = step[1] != 0 or draft.motion == "bounce"
    places = ["left_of", "right_of"] if across_x else ["above", "below"] if step[0] else list(PLACE_SIGNS)
    relation = choose(rng, places)
    motion = "still" if rng.random() < 0.5 else choose(rng, IN_PLACE)
    size, other_size, speed = _size(rng, _PAIR_RADII, draft.motion), _size(rng, _PAIR_RADII, motion), _speed(draft)
    start, end = _path(draft, size[1], speed, spread=0.35)
    sx, sy = PLACE_SIGNS[relation]
    start, end = ((sx * 0.255 or x, sy * 0.255 or y) for x, y in (start, end))
    item = _object(draft, draft.main, size, start, end)
    other = _object(draft, _second(draft, motion), other_size, (-sx * 0.255, -sy * 0.255))
    return Scene(draft.background, (item, other), "beside", relation, speed=speed)


def _overlap(draft: _Draft) -> Scene:
    """Place two partly overlapping objects; the relation says which one is in front."""
    rng, angle = draft.rng, float(draft.rng.random()) * 2 * np.pi
    sizes = _size(rng, {"medium": _RADII["medium"]}), _size(rng, {"medium": _RADII["medium"]})
    reach = 0.29 * (sizes[0][1] + sizes[1][1])
    near = (float(np.cos(angle)) * reach, float(np.sin(angle)) * reach)
    item = _object(draft, draft.main, sizes[0], near)
    other = _object(draft, _second(draft, "still"), sizes[1], (-near[0], -near[1]))
    return Scene(draft.background, (item, other), "overlap", choose(rng, ["front", "behind"]))


def _meet(draft: _Draft) -> Scene:
    """Arrange pass, toward or away: the main object moves, the second one waits on or beside its line."""
    rng, (dx, dy) = draft.rng, AXIS_STEPS[draft.motion]
    size, other_size = (_size(rng, {k: _PAIR_RADII[k] for k in ("small", "medium")}) for _ in range(2))
    room, other_room, touch = 0.49 - size[1], 0.49 - other_size[1], 0.92 * (size[1] + other_size[1])
    apart = {"pass": 0.75, "toward": 0.0, "away": 0.0}[draft.layout] * (size[1] + other_size[1])
    first, last, other_at = {
        "pass": (-room, room, 0.001),
        "toward": (-room, other_room - touch, other_room),
        "away": (touch - other_room, room, -other_room),
    }[draft.layout]
    side = choose(rng, (-0.5, 0.5)) * apart
    start, end = (((dx * at) or side, (dy * at) or side) for at in (first, last))
    item = _object(draft, draft.main, size, start, end)
    waiting = ((dx * other_at) or -side, (dy * other_at) or -side)
    return Scene(draft.background, (item, _object(draft, _second(draft, "still"), other_size, waiting)), draft.layout)


def _follow(draft: _Draft) -> Scene:
    """Let the main object follow the second one at a constant distance."""
    rng, (dx, dy) = draft.rng, AXIS_STEPS[draft.motion]
    size, lead_size = (_size(rng, {k: _PAIR_RADII[k] for k in ("small", "medium")}) for _ in range(2))
    gap = size[1] + lead_size[1] + 0.03
    side = float(rng.uniform(-0.2, 0.2))
    first, last = size[1] - 0.5, 0.5 - lead_size[1] - gap
    start, end = (((dx * at) or side, (dy * at) or side) for at in (first, last))
    lead_start, lead_end = (((dx * (at + gap)) or side, (dy * (at + gap)) or side) for at in (first, last))
    item = _object(draft, draft.main, size, start, end)
    leader = _object(draft, _second(draft, draft.motion), lead_size, lead_start, lead_end)
    return Scene(draft.background, (item, leader), "follow")


def _around(draft: _Draft) -> Scene:
    """Let the main object circle the second one, which waits."""
    size, other_size = ("small", float(draft.rng.uniform(*_PAIR_RADII["small"]))), ("small", 0.14)
    item = _object(draft, draft.main, size, (0.0, 0.0))
    return Scene(draft.background, (item, _object(draft, _second(draft, "still"), other_size, (0.0, 0.0))), "around")


_LAYOUTS: Mapping[str, Callable[[_Draft], Scene]] = {
    "solo": _solo,
    "group": _group,
    "beside": _beside,
    "overlap": _overlap,
    "pass": _meet,
    "toward": _meet,
    "away": _meet,
    "follow": _follow,
    "around": _around,
}

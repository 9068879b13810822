"""Draw a scene: the background, then each object frame by frame, then the light."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from evilm.seeds import named_rng
from evilm.synth.backgrounds import FLOW_RATIOS, Canvas, paint_background
from evilm.synth.shapes import shape_distance
from evilm.synth.world import STEPS, ObjectSpec, Scene

PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (222, 34, 34),
    "orange": (248, 132, 22),
    "yellow": (250, 220, 40),
    "green": (34, 168, 58),
    "cyan": (40, 214, 210),
    "blue": (34, 72, 222),
    "purple": (136, 40, 184),
    "pink": (252, 132, 190),
    "white": (244, 244, 244),
    "black": (24, 24, 28),
}
_MARGIN = 1.3
"""Half side, in radii, of a box that holds every shape at every angle."""
_RIM_PX = 1.6


@dataclass(frozen=True)
class Pose:
    """Pose of an object in every frame: centre (units of the short side), scale, angle (radians) and opacity."""

    x: Float[np.ndarray, " frame"]
    y: Float[np.ndarray, " frame"]
    scale: Float[np.ndarray, " frame"]
    angle: Float[np.ndarray, " frame"]
    opacity: Float[np.ndarray, " frame"]


def frame_times(num_frames: int) -> Float[np.ndarray, " frame"]:
    """Return the time (0-1) of each frame, the middle of its share of the clip."""
    return (np.arange(num_frames) + 0.5) / num_frames


def pose_object(item: ObjectSpec, layout: str, times: Float[np.ndarray, " frame"]) -> Pose:
    """Compute the path of one object over `times` (0-1)."""
    t, phase = times, item.phase
    sense = 1.0 if phase < 0.5 else -1.0
    along = t if item.motion in STEPS else np.zeros_like(t)
    x = item.start[0] + (item.end[0] - item.start[0]) * along
    y = item.start[1] + (item.end[1] - item.start[1]) * along
    scale, opacity = np.ones_like(t), np.ones_like(t)
    angle = np.full_like(t, (phase - 0.5) * 0.24)
    match item.motion:
        case "spin":
            angle = angle + sense * np.radians(175) * t
        case "grow":
            scale = 0.35 + 0.65 * t
        case "shrink":
            scale = 1 - 0.65 * t
        case "blink":
            opacity = 1.0 - (np.floor(4 * t + round(phase)) % 2)
        case "appear":
            opacity = np.clip((t - 0.15) / 0.6, 0, 1)
        case "vanish":
            opacity = np.clip((0.85 - t) / 0.6, 0, 1)
        case "shake":
            x = x + 0.045 * np.sin(2 * np.pi * (9.3 * t + phase))
            y = y + 0.045 * np.sin(2 * np.pi * (7.7 * t + 2 * phase))
        case "bounce":
            floor = 0.49 - item.radius
            y = floor - 1.6 * floor * np.abs(np.sin(np.pi * (1.6 * t + phase)))
        case "orbit":
            reach = 0.49 - item.radius if layout == "around" else min(0.4 - item.radius, 0.25)
            turn = 2 * np.pi * (phase + sense * 1.05 * t)
            x, y = x + reach * np.cos(turn), y + reach * np.sin(turn)
    return Pose(x, y, scale, angle, opacity)


def render_frames(
    scene: Scene, seed: str, num_frames: int, fps: int, width_px: int, height_px: int
) -> UInt8[np.ndarray, "frame row col rgb"]:
    """Render the frames of a scene as RGB; `seed` determines the noise, which the scene does not define."""
    rng, side_px = named_rng("pixels", seed), min(width_px, height_px)
    frames = _background_frames(scene, rng, num_frames, fps, width_px, height_px)
    times = frame_times(num_frames)
    order = scene.objects if scene.relation == "behind" else scene.objects[::-1]
    for item in order:
        _draw(frames, item, pose_object(item, scene.layout, times), side_px, rng)
    if scene.event:
        up = times if scene.event == "brighter" else 1 - times
        light = ((0.28 + 0.82 * up) * 256).astype(np.uint16)
        np.minimum((frames * light[:, None, None, None]) >> 8, 255, out=frames, casting="unsafe")
    return frames


def _background_frames(
    scene: Scene, rng: np.random.Generator, num_frames: int, fps: int, width_px: int, height_px: int
) -> UInt8[np.ndarray, "frame row col rgb"]:
    """Paint the background of every frame; water, clouds, fog and lava flow."""
    side_px, (brightness, *phases) = min(width_px, height_px), scene.look
    flow_x, flow_y = (ratio * side_px / fps for ratio in FLOW_RATIOS.get(scene.background, (0.0, 0.0)))
    offsets = [(round(k * flow_y), round(k * flow_x)) for k in range(num_frames)]
    rows, cols = height_px + offsets[-1][0], width_px + offsets[-1][1]
    canvas = Canvas(rng, rows, cols, side_px, (phases[0], phases[1]))
    image = np.minimum(paint_background(scene.background, canvas) * np.float32(brightness), 255).astype(np.uint8)
    frames = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    for frame, (dy, dx) in zip(frames, offsets, strict=True):
        frame[:] = image[dy : dy + height_px, dx : dx + width_px]
    return frames


def _draw(
    frames: UInt8[np.ndarray, "frame row col rgb"], item: ObjectSpec, pose: Pose, side_px: int, rng: np.random.Generator
) -> None:
    """Blend one object over `frames`, in place."""
    num_frames, height_px, width_px, _ = frames.shape
    radius_px = item.radius * side_px
    reach = int(np.ceil(radius_px * _MARGIN)) + 3
    centre_x, centre_y = pose.x * side_px + width_px / 2 - 0.5, pose.y * side_px + height_px / 2 - 0.5
    left, top = np.round(centre_x).astype(int) - reach, np.round(centre_y).astype(int) - reach
    grain = rng.standard_normal((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    # Objects that only slide are drawn once and moved by whole pixels; others are drawn in every frame.
    fixed = bool(np.ptp(pose.angle) == 0 and np.ptp(pose.scale) == 0)
    which = slice(0, 1) if fixed else slice(None)
    paint, cover = _sprites(item, reach, radius_px * pose.scale[which], pose.angle[which], grain)
    for k in range(num_frames):
        if pose.opacity[k] == 0:
            continue
        j = 0 if fixed else k
        y0, x0 = max(top[k], 0), max(left[k], 0)
        y1, x1 = min(top[k] + 2 * reach + 1, height_px), min(left[k] + 2 * reach + 1, width_px)
        if y0 >= y1 or x0 >= x1:
            continue
        rows, cols = slice(y0 - top[k], y1 - top[k]), slice(x0 - left[k], x1 - left[k])
        share = cover[j, rows, cols, None] * np.float32(pose.opacity[k])
        patch = frames[k, y0:y1, x0:x1]
        patch[:] = (patch + share * (paint[j, rows, cols] - patch)).astype(np.uint8)


def _sprites(
    item: ObjectSpec,
    reach: int,
    radii_px: Float[np.ndarray, " frame"],
    angles: Float[np.ndarray, " frame"],
    grain: Float[np.ndarray, "row col"],
) -> tuple[Float[np.ndarray, "frame row col rgb"], Float[np.ndarray, "frame row col"]]:
    """Draw the colour (0-255) and coverage (0-1) of an object in a box around its centre."""
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    radius = radii_px.astype(np.float32)[:, None, None]
    sx, sy = steps[None, None, :] / radius, steps[None, :, None] / radius
    cos, sin = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    x, y = cos * sx + sin * sy, cos * sy - sin * sx
    distance_px = shape_distance(item.shape, x, y) * radius
    cover = np.clip(np.float32(0.5) - distance_px, 0, 1)
    paint = np.asarray(PAINTS[item.colour], np.float32)
    light = float(paint @ np.asarray((0.3, 0.59, 0.11), np.float32)) / 255
    # Marks and rim contrast with the paint: dark on light colours, pale on dark ones.
    mark = paint * np.float32(0.3) if light > 0.55 else paint + np.float32(0.72) * (255 - paint)
    rim = paint * np.float32(0.35) if light > 0.2 else paint + np.float32(0.5) * (255 - paint)
    shade = 1 - np.float32(0.16) * np.clip(sx + sy, -1.2, 1.2) + np.float32(0.025) * grain
    colour = np.where(_marks(item, x, y)[..., None], mark, paint) * shade[..., None]
    colour = np.where((distance_px > -_RIM_PX)[..., None], rim, colour)
    return np.clip(colour, 0, 255).astype(np.float32), cover.astype(np.float32)


def _marks(item: ObjectSpec, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw the stripes or dots of an object, which turn with it."""
    if item.texture == "striped":
        wave = (x + y) * np.float32(1.7) + np.float32(0.5)
        return wave - np.floor(wave) < 0.36
    if item.texture == "dotted":
        u, v = x * np.float32(2.1) + np.float32(0.5), y * np.float32(2.1) + np.float32(0.5)
        return (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.27**2
    return np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)

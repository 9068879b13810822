"""Check what a caller passes as videos, frames, captions and masks; errors name the first item that can't be used."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from evilm.errors import ConfigError, DecodeError
from evilm.video.reasons import RejectReason

Frame = bytes | Image.Image | np.ndarray | Tensor
"""A JPEG, an image, or pixels (row, col, 3), RGB: uint8 0-255 or float 0-1; (3, row, col) too."""
Video = str | Path | Sequence[Frame] | np.ndarray | Tensor
"""A video file (local path or URI), a list of frames, or pixels (frame, row, col, 3) or (frame, 3, row, col)."""
Videos = Iterable[Video] | np.ndarray | Tensor
"""Videos, a batch of them as an array (video, frame, row, col, 3), or the output of `EViLM.embed_videos` for them."""
_ACCEPTED = "a path or URI, a list of frames (JPEGs as bytes, images, arrays), or an array (frame, row, col, 3)"
_PIXELS = "RGB pixels (row, col, 3) or (3, row, col), uint8 from 0 to 255 or float from 0 to 1"


def list_videos(videos: object, name: str = "videos") -> list[Video]:
    """Return videos as a list.

    Args:
        videos: anything that yields videos, or a batch of them as an array (video, frame, row, col, 3).
        name: of the argument, for messages.

    Raises:
        ConfigError: it is a single video or nothing of the kind, or one of the items is not a video.
    """
    is_array = isinstance(videos, np.ndarray | Tensor)
    if is_array and videos.ndim != (1 if _is_text_array(videos) else 5):
        raise ConfigError(
            f"{name} of shape {tuple(videos.shape)}; pass a list of videos, or an array (video, frame, row, col, 3)"
        )
    found: list[Any] = [list(video) if isinstance(video, Iterator) else video for video in list_of(videos, name)]
    for place, video in enumerate(found):
        if fault := _fault(video):
            raise ConfigError(f"{name}[{place}] {fault}; a video is {_ACCEPTED}")
    return found


def is_embedded(videos: Videos) -> TypeGuard[Tensor]:
    """Return whether these are the output of `EViLM.embed_videos` rather than videos."""
    return isinstance(videos, Tensor) and videos.ndim == 3


def check_pairs(num_videos: int, num_others: int, name: str) -> None:
    """Check that there are as many videos as `name`.

    Raises:
        ConfigError: there are not.
    """
    if num_videos != num_others:
        raise ConfigError(f"{num_videos} videos and {num_others} {name}; pairs need as many of both")


def list_texts(texts: object, name: str = "captions") -> list[str]:
    """Return captions, questions or options as a list of str.

    Raises:
        ConfigError: it is a single text or nothing of the kind, or one of the items is not text.
    """
    found = list_of(texts, name)
    return [as_text(text, f"{name}[{place}]") for place, text in enumerate(found)]


def list_of(values: Any, name: str) -> list[Any]:
    """Return what can be iterated over as a list.

    Raises:
        ConfigError: it is a single item, a mapping, a set, or no collection.
    """
    single = isinstance(values, str | bytes | bytearray | Path | Image.Image)
    no_order = isinstance(values, Mapping | set | frozenset) or getattr(values, "ndim", 1) == 0
    if single or no_order or not isinstance(values, Iterable):
        is_one = f" is one {name.rstrip('s')}" if single and name.endswith("s") else ""
        raise ConfigError(
            f"{name} = {_shown(values)}{is_one}; pass a list of {name if name.endswith('s') else 'texts'}"
        )
    return list(values)


def as_text(text: object, name: str) -> str:
    """Return a text.

    Raises:
        ConfigError: it is anything else, such as None, NaN or bytes.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{name} = {_shown(text)} is not text; pass a str")
    return str(text)


def as_video(video: object) -> Video:
    """Return one video.

    Raises:
        ConfigError: it is nothing that can be read as a video.
    """
    video = list(video) if isinstance(video, Iterator) else video
    if fault := _fault(video):
        raise ConfigError(f"video {fault}; a video is {_ACCEPTED}")
    return video  # type: ignore[return-value]


def as_mask(mask: object, shape: tuple[int, ...]) -> Tensor:
    """Return a mask as a tensor.

    Raises:
        ConfigError: it is not bool, or of another shape.
    """
    found = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask)) if _is_bool(mask) else None
    if found is None or found.dtype != torch.bool or tuple(found.shape) != shape:
        kind = "video, frame, row, col" if len(shape) == 4 else "frame, row, col"
        of = _shown(mask) if found is None else f"{found.dtype} {tuple(found.shape)}"
        raise ConfigError(f"mask = {of}; pass bool {shape} ({kind} of regions), True where a region is masked")
    return found


def frame_pixels(frame: Frame, max_pixels: int) -> UInt8[np.ndarray, "row col 3"]:
    """Decode or convert one frame of any size.

    Raises:
        DecodeError: it is not a JPEG, is damaged, or has too many pixels.
        ConfigError: it is an array or an image that does not hold RGB pixels.
    """
    if isinstance(frame, Image.Image):
        return _image_pixels(frame)
    if isinstance(frame, Tensor):
        frame = frame.detach().cpu()
        frame = (frame.float() if frame.is_floating_point() else frame).numpy()
    if isinstance(frame, np.ndarray):
        return _array_pixels(frame)
    return _decode_jpeg(bytes(frame), max_pixels)


def _fault(video: object) -> str:
    """Return why something is not a video; '' if it is one."""
    if isinstance(video, str | Path):
        return "" if str(video) else "is an empty path"
    if isinstance(video, bytes | bytearray | memoryview):
        return "is bytes"
    if isinstance(video, Image.Image):
        return "is a single image"
    if isinstance(video, np.ndarray | Tensor) and not _is_text_array(video):
        return "" if video.ndim == 4 else f"is an array of shape {tuple(video.shape)}"
    if not isinstance(video, Sequence | np.ndarray):
        return f"= {_shown(video)}"
    for place, frame in enumerate(video):
        if not isinstance(frame, bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor):
            return f"has {_shown(frame)} as frame {place}"
    return ""


def _array_pixels(frame: np.ndarray) -> UInt8[np.ndarray, "row col 3"]:
    about = f"frames of {frame.dtype} {frame.shape}"
    if frame.ndim == 3 and frame.shape[2] != 3 and frame.shape[0] == 3:
        frame = np.moveaxis(frame, 0, 2)
    if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size or frame.dtype.kind not in "uf":
        raise ConfigError(f"{about}; pass {_PIXELS}")
    if frame.dtype.kind == "f":
        low, high = float(frame.min()), float(frame.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ConfigError(f"{about} with values from {low:.4g} to {high:.4g}; pass {_PIXELS}")
        frame = np.rint(frame * 255).astype(np.uint8)
    if frame.dtype != np.uint8:
        raise ConfigError(f"{about}; pass {_PIXELS}")
    return frame


def _image_pixels(frame: Image.Image) -> UInt8[np.ndarray, "row col 3"]:
    if frame.mode[0] in "IF":  # PIL cuts their values at 255 instead of scaling them
        raise ConfigError(f"a frame of mode {frame.mode}, whose range is not known; pass an image of 8 bits a channel")
    try:
        return np.asarray(frame.convert("RGB"))
    except (OSError, ValueError) as error:  # its file is truncated or closed
        raise DecodeError(RejectReason.DECODE_ERROR, f"a frame that can't be read ({error})") from None


def _decode_jpeg(jpeg: bytes, max_pixels: int) -> UInt8[np.ndarray, "row col 3"]:
    try:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(jpeg)[:2])
        if height * width > max_pixels:
            raise DecodeError(RejectReason.TOO_LARGE, f"a frame of {width} x {height} pixels, allowed are {max_pixels}")
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False, fastupsample=False)
    except (ValueError, TypeError) as error:
        raise DecodeError(RejectReason.DECODE_ERROR, f"a frame that is not a JPEG ({error})") from None


def _is_text_array(values: np.ndarray | Tensor) -> bool:
    """Return whether an array holds objects, such as paths, rather than numbers."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "OUS"


def _is_bool(mask: object) -> bool:
    try:
        return np.asarray(mask).dtype == np.bool_
    except (TypeError, ValueError):
        return False


def _shown(value: object) -> str:
    """Return a short form of a value with its type."""
    if isinstance(value, np.ndarray | Tensor):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"

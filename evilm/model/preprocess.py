"""From a video file, JPEGs or pixels to the frames that a model was trained on: the rules that are saved beside it."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from evilm.config.base import validate
from evilm.config.data import FramesConfig
from evilm.config.models import EViLMConfig
from evilm.errors import CheckpointError, ConfigError, DecodeError, ShardError
from evilm.io import storage
from evilm.model.video_encoder import pixel_statistics
from evilm.shards import decode_frames
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from evilm.video.resize import fit, resize

PREPROCESSOR = "preprocessor_config.json"
Video = str | Path | Sequence[bytes] | np.ndarray
"""A video file (local path or URI), its frames as JPEGs, or as pixels (uint8 RGB; frame, row, col, 3)."""


class Preprocessor:
    """Reads videos as `shard_videos` did for the training, so that a file gives the very frames of its shard."""

    def __init__(self, frames: FramesConfig, num_frames: int) -> None:
        """Take the settings of the frame shards and the model's number of frames.

        Frames at random times become those in the middle of their spans.
        """
        self.frames = frames.override({"sampling": "centre"})
        self.num_frames = num_frames
        # Files come from anywhere: one that hangs or kills its decoder must not take the model along.
        self._decoder, self._one_at_a_time = Decoder(self.frames), Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.frames, self.num_frames)

    def __call__(self, video: Video) -> UInt8[np.ndarray, "frame row col 3"]:
        """The frames of a video, square and as many as the model takes.

        Of more frames than that, the middle one of each of equal groups is taken.

        Raises:
            DecodeError: the file or a JPEG can't be decoded, or a file takes longer than `frames.decode_timeout_s`.
            ConfigError: fewer frames than the model takes, or no pixels.
        """
        if isinstance(video, str | Path):
            pixels = self._decode_file(str(video))
        elif isinstance(video, np.ndarray):
            pixels = list(video)
        else:
            pixels = [_decode_jpeg(jpeg, self.frames.max_pixels) for jpeg in video]
        if len(pixels) < self.num_frames:
            raise ConfigError(f"a video of {len(pixels)} frames; give at least the model's {self.num_frames}")
        bounds = [k * len(pixels) // self.num_frames for k in range(self.num_frames + 1)]
        picked = [pixels[(start + end - 1) // 2] for start, end in pairwise(bounds)]
        return np.stack([self._to_square(frame) for frame in picked])

    def _decode_file(self, uri: str) -> list[np.ndarray]:
        with ExitStack() as stack:
            try:
                path = stack.enter_context(storage.local_copy(uri))
                with self._one_at_a_time:
                    clip = self._decoder.decode(path, uri)
                return list(decode_frames(clip.frames))
            except FileNotFoundError:
                raise DecodeError(RejectReason.MISSING_FILE, uri) from None
            except DecodeError as error:
                raise DecodeError(error.reason, f"{uri} {error.detail}".strip()) from None

    def _to_square(self, frame: np.ndarray) -> np.ndarray:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ConfigError(f"frames of {frame.dtype} {frame.shape}; give uint8 RGB pixels (frame, row, col, 3)")
        side = self.frames.frame_px
        if frame.shape[:2] == (side, side):
            return frame
        return resize(np.ascontiguousarray(frame), fit(frame.shape[1], frame.shape[0], side, self.frames.resize), side)

    def save(self, uri: str, config: EViLMConfig) -> None:
        """Write the rules beside the model."""
        storage.write_json(storage.join(uri, PREPROCESSOR), self._content(config))

    @classmethod
    def load(cls, uri: str, config: EViLMConfig) -> Self:
        """The rules beside a model.

        Raises:
            CheckpointError: there are none, or they ask for what this code would not do.
        """
        place = storage.join(uri, PREPROCESSOR)
        try:
            found = storage.read_json(place)
            rules = cls(validate(FramesConfig, found["frames"], where=place), config.num_frames)
        except FileNotFoundError:
            raise CheckpointError(f"{uri} has no {PREPROCESSOR}; save the model with EViLM.save_pretrained") from None
        except (ShardError, TypeError, KeyError, ConfigError) as error:
            raise CheckpointError(f"{place} can't be used ({error}); save the model again") from None
        for name, value in rules._content(config).items():
            if name != "frames" and found.get(name) != value:
                raise CheckpointError(f"{place}: {name} = {found.get(name)!r}, the model needs {value!r}; fix the file")
        return rules

    def _content(self, config: EViLMConfig) -> dict[str, Any]:
        """By the names that transformers has for them, and all that makes frames out of a video under `frames`."""
        mean, std = pixel_statistics(config.video_encoder)
        return {
            "processor_class": "EViLM",
            "num_frames": self.num_frames,
            "do_resize": True,
            "size": {"height": config.input_px, "width": config.input_px},
            "resample": "bilinear, antialiased",
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
            "frames": self.frames.model_dump(mode="json"),
        }


def _decode_jpeg(jpeg: bytes, max_pixels: int) -> np.ndarray:
    """Pixels of one JPEG of any size.

    Raises:
        DecodeError: it is none, is damaged, or has too many pixels.
    """
    try:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(jpeg)[:2])
        if height * width > max_pixels:
            raise DecodeError(RejectReason.TOO_LARGE, f"a frame of {width} x {height} pixels, allowed are {max_pixels}")
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False, fastupsample=False)
    except (ValueError, TypeError) as error:
        raise DecodeError(RejectReason.DECODE_ERROR, f"a frame that is no JPEG ({error})") from None

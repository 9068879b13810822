"""Convert a video file or frames to a model's input frames, by the rules saved beside the model."""

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from evilm.config.base import validate
from evilm.config.data import FramesConfig
from evilm.config.models import EViLMConfig
from evilm.errors import CheckpointError, ConfigError, DecodeError, ShardError
from evilm.io import storage
from evilm.model.inputs import Frame, Video, as_video, frame_pixels
from evilm.model.video_encoder import pixel_statistics
from evilm.shards import decode_frames
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from evilm.video.resize import fit, resize

PREPROCESSOR = "preprocessor_config.json"


class Preprocessor:
    """Read videos as `shard_videos` did for the training, so that a file gives exactly the frames of its shard."""

    def __init__(self, frames: FramesConfig, num_frames: int) -> None:
        """Use the settings of the frame shards and the model's number of frames.

        Random sampling becomes sampling at the middle of each span.
        """
        self.frames = frames.override({"sampling": "centre"})
        self.num_frames = num_frames
        # Files come from anywhere: one that hangs or crashes its decoder must not stop the caller's process.
        self._decoder, self._one_at_a_time = Decoder(self.frames), Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.frames, self.num_frames)

    def __call__(self, video: Video) -> UInt8[np.ndarray, "frame row col 3"]:
        """Return the frames of a video, square and as many as the model takes.

        If there are more, they are divided into equal groups, and the middle one of each is used.

        Raises:
            DecodeError: the file or a JPEG can't be decoded, or a file takes longer than `frames.decode_timeout_s`.
            ConfigError: there are fewer frames than the model takes, or an array is not pixels.
        """
        video = as_video(video)
        frames = self._decode_file(str(video)) if isinstance(video, str | Path) else video
        if len(frames) < self.num_frames:
            raise ConfigError(f"a video of {len(frames)} frames; pass at least the model's {self.num_frames}")
        bounds = [k * len(frames) // self.num_frames for k in range(self.num_frames + 1)]
        picked = [frames[(start + end - 1) // 2] for start, end in pairwise(bounds)]
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

    def _to_square(self, frame: Frame) -> np.ndarray:
        pixels, side = frame_pixels(frame, self.frames.max_pixels), self.frames.frame_px
        height, width = pixels.shape[:2]
        if (height, width) == (side, side):
            return pixels
        return resize(np.ascontiguousarray(pixels), fit(width, height, side, self.frames.resize), side)

    def save(self, uri: str, config: EViLMConfig) -> None:
        """Write the preprocessing rules beside the model."""
        storage.write_json(storage.join(uri, PREPROCESSOR), self._content(config))

    @classmethod
    def load(cls, uri: str, config: EViLMConfig) -> Self:
        """Load the preprocessing rules saved beside a model.

        Raises:
            CheckpointError: there are none, or this code can't follow them.
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
        """Return the rules by the names of transformers, and all settings of the frame shards under `frames`."""
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

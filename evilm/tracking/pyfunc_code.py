"""The code of the MLflow model, which MLflow copies into it and runs when it is loaded: nothing is pickled.

Rows have a `caption` and either `video`, a path on the machine that serves, or `frames`, JPEGs as base64 text. Where
others may call it, set EVILM_VIDEO_ROOT to the one folder below which `video` paths are allowed.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from evilm.errors import ConfigError
from evilm.model.inference import EViLM
from evilm.model.inputs import Video

VIDEO_ROOT = "EVILM_VIDEO_ROOT"


class EViLMPyfunc(PythonModel):
    """Rows of a video and a caption to their matching probability."""

    _skip_type_hint_validation = True  # the model has a signature; MLflow warns at each load otherwise

    def load_context(self, context: Any) -> None:
        """Load weights, vocabulary and preprocessing from the artifact."""
        self.model = EViLM.from_pretrained(context.artifacts["evilm"])

    def predict(self, context: Any, model_input, params: Any = None) -> Any:  # MLflow reads a hint as a schema
        """Return one row per pair: `score`, the probability that video and caption belong together.

        Raises:
            ConfigError: a row without caption or video, a video outside EVILM_VIDEO_ROOT, frames that are not base64.
            DecodeError: a video or frame that can't be decoded.
        """
        rows: list[Mapping[str, Any]] = model_input.to_dict("records")
        captions = [_caption(row, number) for number, row in enumerate(rows)]
        videos = [_video(row, number) for number, row in enumerate(rows)]
        return pd.DataFrame({"score": self.model.match_pairs(videos, captions).astype(float)})


def _caption(row: Mapping[str, Any], number: int) -> str:
    caption = row.get("caption")
    if not isinstance(caption, str):
        raise ConfigError(f"row {number}: caption = {caption!r}; give a text")
    return caption


def _video(row: Mapping[str, Any], number: int) -> Video:
    """Return the video that a row names or holds."""
    video, frames = row.get("video"), row.get("frames")
    if isinstance(video, str) and video:
        return _allowed(video, number)
    if frames is None or isinstance(frames, str | float) or not len(frames):
        raise ConfigError(f"row {number}: neither video nor frames; give a path, or a list of base64 JPEGs")
    try:
        return [base64.b64decode(frame, validate=True) for frame in frames]
    except (binascii.Error, TypeError, ValueError) as error:
        raise ConfigError(f"row {number}: frames are not base64 text ({error}); encode each JPEG by itself") from None


def _allowed(video: str, number: int) -> str:
    """Return a path on this machine below EVILM_VIDEO_ROOT, links followed; refuse all others, and URLs."""
    if "://" in video or video.startswith("~"):
        raise ConfigError(f"row {number}: video = {video!r}; give a path on the serving machine, or send frames")
    root = os.environ.get(VIDEO_ROOT)
    if not root:
        raise ConfigError(
            f"row {number}: video = {video!r}, but {VIDEO_ROOT} is not set where the model is served; set it to the "
            "folder that may be read, or send frames"
        )
    found = (Path(root) / video).resolve()
    if not found.is_relative_to(Path(root).resolve()):
        raise ConfigError(f"row {number}: video = {video!r} lies outside {VIDEO_ROOT}; give a path below it")
    return str(found)


mlflow.models.set_model(EViLMPyfunc())

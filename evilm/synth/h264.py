"""Encode frames to H.264 in mp4 with reproducible bytes."""

import io

import av
import numpy as np
from jaxtyping import UInt8

_OPTIONS = {"preset": "superfast", "crf": "22", "threads": "1", "sc_threshold": "0"}


def encode_h264(frames: UInt8[np.ndarray, "frame row col rgb"], fps: int) -> bytes:
    """Encode an mp4 file with one H.264 stream, a key frame per second, and no audio."""
    _, height_px, width_px, _ = frames.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={**_OPTIONS, "g": str(fps)})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.codec_context.thread_count = 1  # more threads split frames into slices, which changes the bytes
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()

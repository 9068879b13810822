"""Time video2dataset's subsampling of a folder of videos; runs in a separate environment.

    python3.11 -m venv peer
    peer/bin/pip install video2dataset imageio-ffmpeg 'pyarrow<21' 'pandas<3'
    peer/bin/python benchmarks/peers/video2dataset_subsample.py clips/ --methods frames,video,reader

video2dataset 1.3.0 pins torch 2.1 and thereby numpy 1, hence the bounds in the second line. It calls the `ffmpeg`
program, which imageio-ffmpeg provides. Three of its parts come close to "a few frames of each clip as JPEG":

- frames: `FrameSubsampler(downsample_method="yt_subtitle")`, a JPEG at each given time, native size;
- video: `ResolutionSubsampler` then `FrameSubsampler(fps)`, the documented way: a small mp4 at a low rate;
- reader: its data loader's `VideoDecorder(uniformly_sample)`, decord at linspace(0, n - 1), native size, no JPEG.

Only the calls are timed; bytes are read and durations measured before. Prints one JSON object with each method's
finished and failed clips, wall and CPU seconds (including ffmpeg processes).
"""

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif")


def main() -> None:
    """Read the folder, run each method over all clips, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default="frames,video,reader")
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--frame-px", type=int, default=256)
    parser.add_argument("--limit", type=int, default=0, help="only the first N clips by name")
    chosen = parser.parse_args()
    files = sorted(path for path in chosen.folder.rglob("*") if path.suffix.lower() in ENDINGS)
    files = files[: chosen.limit or None]
    # Output of video2dataset and its libraries would mix with our JSON.
    with contextlib.redirect_stdout(open(os.devnull, "w")), tempfile.TemporaryDirectory() as tools:
        _ffmpeg_on_path(tools)
        makers = _makers(chosen.num_frames, chosen.frame_px)
        durations = {path: _duration_s(path) for path in files}
        result = {name: _time(makers[name], files, durations) for name in chosen.methods.split(",")}
    print(json.dumps({"version": metadata.version("video2dataset"), "methods": result}))


def _ffmpeg_on_path(folder: str) -> None:
    """Link imageio-ffmpeg's program under the name that ffmpeg-python calls, unless ffmpeg is installed."""
    import imageio_ffmpeg

    os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), f"{folder}/ffmpeg")
    os.environ["PATH"] += os.pathsep + folder


def _makers(num_frames: int, frame_px: int) -> dict[str, Callable[[Path, bytes, float], str | None]]:
    """Build for each method a function of (path, bytes, duration) that returns an error or None."""
    from video2dataset.dataloader.video_decode import VideoDecorder
    from video2dataset.subsamplers import FrameSubsampler, ResolutionSubsampler

    stills = FrameSubsampler(1, downsample_method="yt_subtitle")
    smaller = ResolutionSubsampler(["scale", "crop"], video_size=frame_px)
    reader = VideoDecorder(n_frames=num_frames, uniformly_sample=True, num_threads=1)

    def frames(path: Path, data: bytes, duration_s: float) -> str | None:
        times = [(number + 0.5) * duration_s / num_frames for number in range(num_frames)]
        row: dict[str, Any] = {"key": path.stem}
        row["yt_meta_dict"] = {"subtitles": [{"start": time_s, "lines": []} for time_s in times]}
        return stills({"video": [data]}, [row])[2]

    def video(path: Path, data: bytes, duration_s: float) -> str | None:
        streams, rows, error = smaller({"video": [data]}, [{"key": path.stem}])
        return error or FrameSubsampler(num_frames / duration_s)(streams, rows)[2]

    def read(path: Path, data: bytes, duration_s: float) -> str | None:
        return None if reader(f"{path.stem}.mp4", data) else "not read"  # it selects by the ending

    return {"frames": frames, "video": video, "reader": read}


def _duration_s(path: Path) -> float:
    """Return the seconds by decord; 1 if it can't open the file."""
    import decord

    try:
        video = decord.VideoReader(str(path), num_threads=1)
        return len(video) / (video.get_avg_fps() or 1.0)
    except decord.DECORDError:
        return 1.0


def _time(make: Callable[[Path, bytes, float], str | None], files: list[Path], durations: dict) -> dict[str, Any]:
    """Run one method over all files."""
    clips, refused, wall_s, cpu_s = 0, [], 0.0, 0.0
    for path in files:
        data = path.read_bytes()
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            error = make(path, data, durations[path])
        except Exception as raised:  # its readers raise the errors of many libraries; count a failed clip
            error = f"{type(raised).__name__}: {raised}"
        wall_s, cpu_s = wall_s + time.perf_counter() - wall, cpu_s + _cpu_s() - cpu
        if error:
            refused.append([path.name, error.strip().splitlines()[-1][:200]])
        else:
            clips += 1
    return {"clips": clips, "wall_s": wall_s, "cpu_s": cpu_s, "refused": refused}


def _cpu_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


if __name__ == "__main__":
    main()

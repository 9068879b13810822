"""Fixtures of the tests of videos: sound files, a decoding process, a web server."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evilm.io import retries
from evilm.video.decoder_process import Decoder
from helpers.broken_videos import CONFIG, GOP, Decode, outcome
from helpers.video_files import write_kind, write_video
from helpers.web_site import Site


@pytest.fixture(scope="session")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a file by its name in `video_files.KINDS`; each is made once."""
    folder = tmp_path_factory.mktemp("kinds")
    return cache(lambda name: write_kind(folder, name))


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """A decoding process."""
    with Decoder(CONFIG) as decoder:
        yield decoder


@pytest.fixture
def decode(decoder: Decoder) -> Decode:
    """Gives what becomes of a file in a decoding process: its frames, or why there are none."""
    return lambda path: outcome(decoder, path)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files of every container. Read them, don't change them."""
    folder = tmp_path_factory.mktemp("files")
    settings: dict[str, dict[str, Any]] = {
        "a.mp4": {"num_frames": 48, "options": GOP},
        "fragmented.mp4": {"num_frames": 48, "muxing": {"movflags": "frag_keyframe+empty_moov"}, "options": GOP},
        "a.mkv": {"num_frames": 48, "options": GOP},
        "a.webm": {"codec": "libvpx-vp9"},
        "a.ts": {"num_frames": 48, "options": GOP},
        "a.avi": {"codec": "mpeg4"},
        "a.flv": {"options": GOP},
        "a.gif": {"codec": "gif", "pix_fmt": "rgb8", "num_frames": 12, "rate": 10},
        "hevc.mp4": {"num_frames": 48, "codec": "libx265", "options": {"x265-params": "keyint=24"}},
    }
    return {name: write_video(folder / name, **values) for name, values in settings.items()}


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between attempts of a download short."""
    monkeypatch.setattr(retries, "_PAUSE_S", 0.01)


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server on loopback."""
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()

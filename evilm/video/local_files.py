"""Find videos below a local root, with missing endings, other forms of accents or capitals, and safe links."""

import contextlib
import errno
import functools
import os
import stat
import unicodedata

from evilm.config.data import VIDEO_ENDINGS
from evilm.errors import AccessError, DecodeError
from evilm.video.reasons import RejectReason

_SCANNED_FOLDERS = 256


class LocalRoot:
    """Access to the files below a folder only; with `follow_links`, links may lead out of it."""

    def __init__(self, root: str, follow_links: bool = False) -> None:
        self._root, self._real_root, self._follow_links = root, os.path.realpath(root), follow_links
        self._odd_names = functools.lru_cache(_SCANNED_FOLDERS)(_odd_names)

    def find(self, path: str, needs_ending: bool) -> str:
        """Find the path of a file below the root; a name with a video's ending is first tried unchanged.

        Raises:
            DecodeError: there is no such file, or it may not be read.
            AccessError: the root itself is not available any more.
        """
        folder, _, last = path.rpartition("/")
        self.check(os.path.join(self._root, folder))
        endings = ("",) if not needs_ending else ("", *VIDEO_ENDINGS) if has_ending(last) else VIDEO_ENDINGS
        tried = [form + ending for ending in endings for form in forms(path)]
        for name in tried:
            if self.is_file(name):
                return name
        names = self._odd_names(os.path.join(self._root, folder))
        wanted = unicodedata.normalize("NFC", last)
        for name in names:  # sorted by rank of ending
            whole = unicodedata.normalize("NFC", name)
            if wanted in ((stem(name), whole if has_ending(last) else None) if needs_ending else (whole,)):
                found = f"{folder}/{name}" if folder else name
                if self.is_file(found):
                    return found
        if not os.path.isdir(self._root):
            raise AccessError(
                f"the folder of the videos {self._root} is gone; mount it again and run the command again"
            )
        if any(os.path.isdir(f"{self._root}/{name}") for name in tried):
            raise DecodeError(RejectReason.NOT_A_FILE, "a folder")
        wanted = f"{folder}/{last}".lstrip("/") + (
            f" + {VIDEO_ENDINGS[0]}, {VIDEO_ENDINGS[1]}, ..." if needs_ending else ""
        )
        raise DecodeError(RejectReason.MISSING_FILE, f"no {wanted[:200]}")

    def is_file(self, path: str, may_lead_out: bool = False) -> bool:
        """Check if a readable file is below the root; with `may_lead_out` it may be a link to elsewhere."""
        place = f"{self._root}/{path}"
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return False
            raise DecodeError(RejectReason.FETCH_ERROR, error.strerror or type(error).__name__) from None
        if stat.S_ISDIR(mode):
            return False
        if not may_lead_out:
            self.check(place)
        if not stat.S_ISREG(mode):
            raise DecodeError(RejectReason.NOT_A_FILE, "a device or pipe")
        if not os.access(place, os.R_OK):
            raise DecodeError(RejectReason.FETCH_ERROR, "no permission to read it")
        return True

    def check(self, place: str) -> None:
        """Reject a path that leads out of the root after following all links."""
        real = os.path.realpath(place)
        if self._follow_links:
            return
        if real != self._real_root and not real.startswith(self._real_root.rstrip("/") + "/"):
            raise DecodeError(RejectReason.PATH_UNSAFE, "a link that leaves the video root; --follow-links allows that")


def forms(name: str) -> list[str]:
    """Return a name and its forms with composed and decomposed accents; file systems store either."""
    return list(dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))))


def _odd_names(folder: str) -> tuple[str, ...]:
    """List files with endings in capitals or other forms of accents, which a plain look-up misses; mostly none."""
    odd = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            known = [ending for ending in VIDEO_ENDINGS if entry.name.lower().endswith(ending)]
            if not entry.name.isascii() or (known and not entry.name.endswith(known[0])):
                odd.append(entry.name)
    return tuple(sorted(odd, key=lambda name: (rank(name), name)))


def rank(name: str) -> int:
    """Return the index of a name's ending in `VIDEO_ENDINGS`; their number for any other."""
    lower = name.lower()
    return next((rank for rank, ending in enumerate(VIDEO_ENDINGS) if lower.endswith(ending)), len(VIDEO_ENDINGS))


def has_ending(name: str) -> bool:
    """Check if a name has a video's ending."""
    return rank(name) < len(VIDEO_ENDINGS)


def stem(name: str) -> str | None:
    """Return a name without its video ending, with normalised accents; None if it has no such ending."""
    number = rank(name)
    if number == len(VIDEO_ENDINGS):
        return None
    return unicodedata.normalize("NFC", name[: -len(VIDEO_ENDINGS[number])])

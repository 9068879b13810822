"""The text of captions as it is stored, and why some cannot be used."""

import re
from collections.abc import Iterator
from typing import Any
from unicodedata import ucd_3_2_0 as unicode

from evilm.config.secrets import stored_text
from evilm.manifests.lists import parse_captions
from evilm.manifests.records import as_text
from evilm.video.reasons import RejectReason

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FORMATS = {*map(chr, (0xAD, 0x61C, *range(0x2066, 0x206A)))}
"""Format characters that Unicode 3.2 does not know as such: the soft hyphen, isolates of right-to-left text."""
_JOINERS = "\u200c\u200d"
"""Format characters that change what is read: Persian words and joined emoji need them."""


class Rejected(Exception):
    """The first thing that is wrong with a row."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def usable_captions(value: Any) -> tuple[str, ...]:
    """Return the usable captions of a cell, each once; an unusable one costs the clip only if there is no other."""
    captions, refused = list[str](), Rejected(RejectReason.EMPTY_CAPTION)
    for text in written_captions(value):
        if isinstance(text, Rejected):
            refused = text
        elif caption := clean_caption(text):
            captions.append(caption)
        else:
            refused = Rejected(RejectReason.EMPTY_CAPTION)
    if not captions:
        raise refused
    return tuple(dict.fromkeys(captions))


def written_captions(value: Any) -> Iterator[str | Rejected]:
    """Yield each caption of a cell with URL secrets removed, or a `Rejected` for one that is not text."""
    try:
        several = parse_captions(value)
    except ValueError as error:
        yield Rejected(RejectReason.BAD_CAPTION, str(error))
        return
    for caption in [value] if several is None else several:
        text = as_text(caption)
        if isinstance(caption, dict):
            keys = ", ".join(map(str, caption))[:80]
            detail = f"an object with {keys}, not a text; make one of them the column"
            yield Rejected(RejectReason.BAD_CAPTION, detail)
        else:
            yield Rejected(RejectReason.BAD_CAPTION, "NUL character") if "\0" in text else stored_text(text)


def clean_caption(text: str) -> str:
    """Remove control and format characters, apply NFC, and fold white space; '' if nothing visible is left.

    By Unicode 3.2, which every Python has, so that a caption does not depend on Python's version; characters that it
    does not know (most emoji) stay as they are.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = unicode.normalize("NFC", _TERMINAL_CODES.sub("", text))
    text = " ".join(word for word in "".join(map(_kept, text)).split(" ") if word)
    return text if text.strip(_JOINERS + " ") else ""


def _kept(character: str) -> str:
    """Return a character as stored in a caption: a blank for white space, '' for what is not visible."""
    kind = unicode.category(character)
    if kind[0] == "Z" or character in "\t\n\r\v\f\x1c\x1d\x1e\x1f\x85":
        return " "
    is_hidden = kind in ("Cc", "Cf", "Cs", "Co") or character in _FORMATS
    return character if character in _JOINERS or not is_hidden else ""

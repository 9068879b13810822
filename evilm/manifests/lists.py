"""Parse lists in the cells of a table: real lists, or lists as JSON, Python or numpy writes them."""

import ast
import json
import re
from typing import Any

_LIST_CHARS = 1 << 20
_ITEM = re.compile(r"""\s*,?\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|nan|NaN|<NA>)""", re.DOTALL)
"""An item of a list of texts, after what separates it from the one before; the last ones are empty."""
_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^\[\]'\"]*)?\)", re.DOTALL)
_ARRAY_OF_TEXTS = re.compile(r"array\(\[\s*['\"]")
_OF_LISTS = re.compile(r"\[\s*(?:[\[{]\s*['\"]|array\(\[)")
_OBJECT = re.compile(r"""\{\s*(?:\}\Z|(?:'[^']*'|"[^"]*")\s*:)""")


def parse_list(value: Any) -> list[Any] | None:
    """Return the list that a cell holds, as JSON, Python or numpy writes it; None if it holds something else."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else None
    if not value.lstrip().startswith(("[", "(", "array([")) or len(value) > _LIST_CHARS:
        return None
    text = value.strip()
    text = array[1] if (array := _ARRAY.fullmatch(text)) else text
    for parse in (json.loads, _whole_texts, ast.literal_eval):  # the last one takes literals only, and runs nothing
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return list(parsed) if isinstance(parsed, list | tuple) else None
    return None


def parse_captions(value: Any) -> list[Any] | None:
    """Return the captions of a cell that holds a list of texts, in any form of `parse_list`; None for one caption.

    Raises:
        ValueError: lists of lists, objects, and lists that are cut off. Other brackets are part of a caption.
    """
    found = parse_list(value)
    nested = (list, tuple, dict, set) if isinstance(value, str) else (list, tuple)
    if any(isinstance(item, nested) for item in found or []):
        raise ValueError("a list of lists or objects, not of texts")
    if not isinstance(value, str):
        return found
    if found is None:
        _check_caption(value.strip())
        return None
    are_texts = any(isinstance(item, str) for item in found) or all(item is None for item in found)
    return found if are_texts else None


def _whole_texts(text: str) -> list[str | None] | None:
    """Read a list of texts as Python or numpy writes it; None where it is unclear what the texts are."""
    texts, rest = _read_texts(text)
    if texts == [] or rest != "]":
        raise ValueError
    return texts


def _read_texts(text: str) -> tuple[list[str | None] | None, str]:
    """Return the texts at the start of a list, and what follows them; None where it is unclear what the texts are.

    Python puts commas between texts, numpy blanks. Python itself would join texts without commas to one.
    """
    items, between, at = list[str | None](), set[str](), 1
    while text.startswith("[") and (found := _ITEM.match(text, at)):
        if items:
            gap = text[at : found.start(1)]
            between.add("," if "," in gap else gap[:1] and " ")
        try:
            items.append(ast.literal_eval(found[1]) if found[1][0] in "'\"" else None)
        except (ValueError, SyntaxError):
            between.add("")
        at = found.end()
    return (None if len(between) > 1 or "" in between else items), text[at:].lstrip(", \t\r\n")


def _check_caption(text: str) -> None:
    """Reject a text that is not a caption but what is left of a list, or an object."""
    if _OBJECT.match(text):
        raise ValueError("an object, not a text; make a column of one of its texts")
    if _OF_LISTS.match(text):
        raise ValueError("a list of lists or objects, not of texts")
    texts, rest = _read_texts(text)
    is_begun = texts != [] and (rest in ("", "]") or rest[0] in "'\"" or rest.startswith("..."))
    is_cut = text.startswith("[") and rest[:1] in ("'", '"') and "]" not in text
    if is_begun or is_cut or _ARRAY_OF_TEXTS.match(text):
        raise ValueError("a list that is cut off or can't be read")

"""Lists in cells, as JSON, Python, numpy and pandas write them, and captions that only look like one."""

import json
from pathlib import Path
from typing import Any

import pytest

from evilm.manifests.captions import read_captions
from evilm.manifests.lists import parse_list
from evilm.manifests.rows import ClipRow
from helpers.tables import Row, as_csv, rows_of_bytes, rows_of_text, write_tar


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("[1, 2]", [1, 2]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("(1, 2)", [1, 2]),
        ([1], [1]),
        ("[]", []),
        ("['a' \"it's\"\n 'c']", ["a", "it's", "c"]),
        ("['a', nan, None]", ["a", None, None]),
        ("['a', 'b' 'c']", None),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ('["caf\\u00e9 \\/"]', ["caf\u00e9 /"]),
        ("1", None),
        ("[", None),
        ("[__import__('os').getpid()]", None),
        ("[" * 100_000, None),
        ("[" * 150 + "]" * 150, None),
        (None, None),
        (1.5, None),
    ],
)
def test_parse_list_reads_literals_only(value: Any, items: list[Any] | None) -> None:
    if items is not None or not isinstance(value, str) or value.count("[") < 100:
        assert parse_list(value) == items
    else:
        parse_list(value)  # deep nesting must not end the process


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("['a man sings' 'someone sings']", ["a man sings", "someone sings"]),
        ("['a man'\n 'b']", ["a man", "b"]),
        ("['a man', nan]", ["a man"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("['a', 5]", ["a", "5"]),
        *(
            (text, [text])
            for text in (
                "[music] a man sings",
                '["Song" plays] a man sings',
                "['tis the season] carols",
                "['one', 'two'] is written on a board",
                "['one', by a boy]",
                "[nana sings]",
                "{music} plays",
                "(a dog)",
                "array of lamps",
                "[1, 2]",
                "[",
            )
        ),
    ],
)
def test_lists_in_a_cell_are_captions_and_brackets_are_not(tmp_path: Path, cell: str, captions: list[str]) -> None:
    (good,), bad = rows_of_bytes(as_csv(["videoid", "name"], ["a", cell]), tmp_path)
    assert (list(good.captions), bad) == (captions, [])
    assert read_captions(str(tmp_path / "a.csv")) == captions
    members = {"a.mp4": b"x", "a.txt": cell.encode()}
    assert read_captions(str(write_tar(tmp_path / "a.tar", members))) == captions


@pytest.mark.parametrize(
    ("cell", "detail"),
    [
        ("['a', 'b", "cut off"),
        ("['a man sin", "cut off"),
        ("['a' 'b' ... 'y' 'z']", "cut off"),
        ("['a', 'b' 'c']", "can't be read"),
        ("array(['a', 'b", "cut off"),
        ("{'short': 'a dog'}", "an object"),
        ('{"en": "a dog"}', "an object"),
        ("[{'caption': 'x'}]", "lists or objects"),
        ("[{'caption': 'x", "lists or objects"),
        ("[['a','b'],['c']]", "list of lists"),
        ("[['a' 'b']\n ['c']]", "list of lists"),
        ([["a", "b"], ["c"]], "list of lists"),
        ([{"caption": "x"}], "an object with caption"),
        ({"short": "a dog"}, "an object with short"),
    ],
)
def test_cells_that_are_no_captions_are_not_counted_either(tmp_path: Path, cell: Any, detail: str) -> None:
    records = [{"videoid": "a", "name": cell}, {"videoid": "b", "name": "a dog"}]
    bad, good = rows_of_text(tmp_path, "\n".join(map(json.dumps, records)), "a.jsonl")
    assert reason_of(bad) == "bad_caption"
    assert detail in bad.detail  # type: ignore[union-attr]
    assert isinstance(good, ClipRow)
    assert read_captions(str(tmp_path / "a.jsonl")) == ["a dog"]
    if isinstance(cell, str):
        good, (bad,) = rows_of_bytes(as_csv(["videoid", "name"], ["a", cell]), tmp_path)
        assert (good, reason_of(bad)) == ([], "bad_caption")


def reason_of(row: Row) -> str:
    return "" if isinstance(row, ClipRow) else row.reason.value

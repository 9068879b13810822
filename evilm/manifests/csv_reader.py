"""Records of CSV and TSV from files that quote badly: a quote that is not closed takes no row after it along."""

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LINE_CHARS = 1 << 24
_FIELD_CHARS = 1 << 20
_RECORD_LINES, _RECORD_CHARS = 10_000, 1 << 25
_AGAIN_CHARS, _AGAIN_SHARE = 1 << 24, 4
"""Characters that may be read once more because of open quotes, and as a multiple of the file so far; with more of
them, quotes hold on their own line only: a file made to keep us busy must not."""

csv.field_size_limit(_FIELD_CHARS)


@dataclass(frozen=True, slots=True)
class ParseError:
    """A record that can't be read, with what could be made of it."""

    detail: str
    values: dict[str, Any] = field(default_factory=dict)


class CsvReader:
    """Read a CSV strictly: what is malformed is a `ParseError` of its first line only, and the lines after that are
    read anew. In a TSV, which often knows no quotes, such a line is read literally.

    `text` is the file with its line ends as they are.
    """

    def __init__(self, text: io.TextIOWrapper, delimiter: str) -> None:
        self._lines, self._delimiter = _Lines(text), delimiter
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)

    def header(self) -> list[str]:
        """Return the fields of the first line that is not empty; [] for an empty file.

        Raises:
            csv.Error: it can't be read.
        """
        for record in self._records(None):
            if isinstance(record, ParseError):
                raise csv.Error(record.detail)
            return record
        return []

    def records(self, header: list[str]) -> Iterator[dict[str, Any] | ParseError]:
        """Yield the following records; those with another number of fields than the header are faults."""
        for record in self._records(header):
            yield record if isinstance(record, ParseError) else dict(zip(header, record, strict=True))

    def _records(self, header: list[str] | None) -> Iterator[list[str] | ParseError]:
        while True:
            self._lines.begin()
            try:
                values = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._again(header, str(error))
                continue
            if not values:  # empty lines are no records
                continue
            if header is not None and len(values) != len(header):
                yield self._again(header, f"{len(values)} of {len(header)} columns")
            elif (header is not None or self._delimiter == "\t") and self._holds_rows(values):
                yield self._again(header, "rows in one field")  # quotes of two rows, not around a text of two lines
            else:
                yield values

    def _holds_rows(self, values: list[str]) -> bool:
        """Check whether rows are in one field: in a TSV tabs are, else every line but the first has a row's delimiters.

        In texts of several lines, blanks or the ends of lines follow commas.
        """
        mark, lines = self._delimiter, [line.rstrip('"\r\n') for line in self._lines.others()]
        if mark == "\t":
            return bool(lines) and any(mark in text for text in values)
        ends = (mark,) if len(values) == 2 else ()
        of_rows = (line.count(mark) == len(values) - 1 and f"{mark} " not in line for line in lines)
        return len(values) > 1 and bool(lines) and all(of_rows) and not any(line.endswith(ends) for line in lines)

    def _again(self, header: list[str] | None, problem: str) -> list[str] | ParseError:
        """Return only the first line of an unusable record; the others will be read once more."""
        place = self._lines.place()
        line = self._lines.give_back()
        try:
            quoting = csv.QUOTE_NONE if self._delimiter == "\t" else csv.QUOTE_MINIMAL
            values = next(csv.reader([line], delimiter=self._delimiter, quoting=quoting), [])
        except csv.Error:
            values = []
        if self._delimiter == "\t" and values and (header is None or len(values) == len(header)):
            return values
        return ParseError(problem + place, dict(zip(header or [], values, strict=False)))


class _Lines(Iterator[str]):
    """Lines of a file, of which those of the current record can be given back; lines beyond all measure in pieces."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._waiting: deque[str] = deque()
        self._taken: list[str] = []
        self._chars = self._before = self._read = self._given_back = 0
        self._most_lines = _RECORD_LINES

    def others(self) -> list[str]:
        """Return the lines of the current record after its first one."""
        return self._taken[1:]

    def __next__(self) -> str:
        if len(self._taken) >= self._most_lines or self._chars > _RECORD_CHARS:
            raise csv.Error("a record without end")
        line = self._waiting.popleft() if self._waiting else self._text.readline(LINE_CHARS)
        if not line:
            raise StopIteration
        self._taken.append(line)
        self._chars += len(line)
        return line

    def begin(self) -> None:
        """Start a new record."""
        self._before += len(self._taken)
        self._read += self._chars
        self._taken.clear()
        self._chars = 0
        is_busy = self._given_back > _AGAIN_CHARS + _AGAIN_SHARE * self._read
        self._most_lines = 1 if is_busy else _RECORD_LINES

    def place(self) -> str:
        """Return where the current record lies, if it goes on over many lines."""
        first, last = self._before + 1, self._before + len(self._taken)
        return f", lines {first} to {last}: a quote that is not closed?" if last > first else ""

    def give_back(self) -> str:
        """Return the first line of the current record; the others are read once more."""
        first, *others = self._taken
        self._waiting.extendleft(reversed(others))
        self._taken = [first]
        self._given_back += self._chars - len(first)
        self._chars = len(first)
        return first

"""Read the files of official annotations strictly: an error names file, record and field."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from evilm.errors import ManifestError
from evilm.io import storage

EMBEDDED_MARK = "EMBEDDED_CORPUS.txt"
"""File beside annotations whose videos are those of the embedded corpus: scores on them can't be compared."""
_SHOWN = 60


@dataclass(frozen=True)
class Record:
    """A record of a file: typed access to its fields."""

    file: str
    number: int
    """From 0, as the file has them."""
    values: Mapping[str, Any]

    def text(self, name: str, may_be_empty: bool = False) -> str:
        """Return a text, stripped.

        Raises:
            ManifestError: it is missing, not a text, or empty.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self.error(f"{name} = {_show(value)} is not a text")
        if not value.strip() and not may_be_empty:
            raise self.error(f"{name} is empty")
        return value.strip()

    def whole_number(self, name: str, least: int, most: int | None = None) -> int:
        """Return a whole number, also one that is written as a text.

        Raises:
            ManifestError: it is missing, not a whole number, or outside of the range.
        """
        value = self._value(name)
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]+\s*", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{name} = {_show(value)} is not a whole number")
        if value < least or (most is not None and value > most):
            raise self.error(f"{name} = {value}, accepted are {least} to {'any' if most is None else most}")
        return value

    def texts(self, name: str, count: int) -> tuple[str, ...]:
        """Return a list of `count` texts.

        Raises:
            ManifestError: it is missing, not such a list, or has empty texts.
        """
        value = self._value(name)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(v, str) for v in value):
            raise self.error(f"{name} = {_show(value)} is not a list of {count} texts")
        if not all(v.strip() for v in value):
            raise self.error(f"{name} has an empty text")
        return tuple(v.strip() for v in value)

    def records(self, name: str) -> Iterator["Record"]:
        """Iterate over the objects of a list.

        Raises:
            ManifestError: it is missing or not a list of objects.
        """
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.error(f"{name} is not a list of objects")
        return (Record(f"{self.file}: {name}", number, each) for number, each in enumerate(value))

    def error(self, what: str) -> ManifestError:
        """Build an error about this record."""
        return ManifestError(f"{self.file}, record {self.number}: {what}; fix the record or use the official file")

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise self.error(f"no field {name!r} (found: {', '.join(map(str, self.values)) or 'none'})")
        return self.values[name]


@dataclass
class Annotations:
    """A folder of annotation files; remembers which were read, with their digests."""

    uri: str
    digests: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """List the files of the folder."""
        return storage.list_names(self.uri)

    def find(self, *patterns: str) -> str:
        """Return the name of the first file that matches, by pattern in order; '' where none does.

        Raises:
            ManifestError: several files match one pattern.
        """
        names = self.names()
        for pattern in patterns:
            found = sorted(name for name in names if fnmatch(name, pattern))
            if len(found) > 1:
                raise ManifestError(
                    f"{self.uri} has {len(found)} files {pattern} ({', '.join(found[:3])}); keep one of them there"
                )
            if found:
                return found[0]
        return ""

    def read_text(self, name: str) -> str:
        """Read a file as UTF-8, and note its digest.

        Raises:
            ManifestError: it is not UTF-8.
        """
        data = storage.read_bytes(storage.join(self.uri, name))
        self.digests[name] = hashlib.sha256(data).hexdigest()
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ManifestError(f"{name}: byte {error.start} is not UTF-8; convert the file") from None

    def json_objects(self, name: str) -> Iterator[Record]:
        """Iterate over a JSON list of objects, or over JSON lines.

        Raises:
            ManifestError: it is neither.
        """
        text = self.read_text(name)
        if not text.lstrip().startswith("["):
            yield from _json_lines(name, text)
            return
        content = _parse(name, text)
        if not isinstance(content, list):
            raise ManifestError(f"{name} is not a JSON list of objects")
        for number, value in enumerate(content):
            if not isinstance(value, dict):
                raise ManifestError(f"{name}, record {number}: {_show(value)} is not an object")
            yield Record(name, number, value)

    def json_object(self, name: str) -> Record:
        """Read one JSON object.

        Raises:
            ManifestError: the file holds something else.
        """
        content = _parse(name, self.read_text(name))
        if not isinstance(content, dict):
            raise ManifestError(f"{name} is not a JSON object")
        return Record(name, 0, content)

    def table(
        self, name: str, columns: Sequence[str] = (), delimiter: str = ",", quoted: bool = True, header: bool = True
    ) -> Iterator[Record]:
        """Iterate over the rows of a table.

        Args:
            columns: those that it must have; all of them, in order, where it has no header.
            quoted: whether fields may be quoted, and then hold delimiters and line breaks.

        Raises:
            ManifestError: a column is missing, or a row has another number of fields.
        """
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(self.read_text(name), newline=""), delimiter=delimiter, quoting=quoting)
        try:
            names = [column.strip() for column in next(reader, [])] if header else list(columns)
            if missing := [column for column in columns if column not in names]:
                raise ManifestError(f"{name} has no column {missing[0]!r} (found: {_show(', '.join(names))})")
            number = 0
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise ManifestError(
                        f"{name}, record {number}: {len(row)} fields, {len(names)} are expected; a quote or a tab too "
                        "many"
                    )
                yield Record(name, number, dict(zip(names, row, strict=True)))
                number += 1
        except csv.Error as error:
            raise ManifestError(f"{name}, line {reader.line_num}: {error}") from None

    def lines(self, name: str) -> list[str]:
        """Return the lines that are not empty, stripped."""
        return [line.strip() for line in self.read_text(name).splitlines() if line.strip()]


def _json_lines(name: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(line for line in text.splitlines() if line.strip()):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"{name}, record {number}: not JSON ({error}); is the file cut short?") from None
        if not isinstance(value, dict):
            raise ManifestError(f"{name}, record {number}: {_show(value)} is not an object")
        yield Record(name, number, value)


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{name} is not JSON ({error}); is the file cut short?") from None


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

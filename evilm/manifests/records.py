"""Tables of any format as a stream of records: CSV, TSV, JSON lines, Parquet, the text kinds also gzipped.

One record is held at a time (one batch for Parquet), so that memory does not grow with the table. A record that can't
be read becomes a `ParseError` in its place; a file that can't be read is a `ManifestError` in one line.
"""

import csv
import datetime
import gzip
import io
import itertools
import json
import logging
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from evilm.errors import ManifestError, StorageError
from evilm.io import storage
from evilm.manifests.csv_reader import LINE_CHARS, CsvReader, ParseError

logger = logging.getLogger(__name__)

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
"""Endings by which a table is known in a folder."""
_HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 23  # s3fs would take 50 MiB per file
_BATCH_ROWS = 1024
_PEEKED = 100
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Table:
    """A table that is being read."""

    uri: str
    header: list[str]
    """Names of the columns; of JSON lines, the keys of the first records."""
    records: Iterator[dict[str, Any] | ParseError]


@contextmanager
def open_table(uri: str) -> Iterator[Table]:
    """Open the table at `uri`, its format known by its content, else by its name.

    Raises:
        ManifestError: no such file, no table in it, or a table that breaks off.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_file(uri, _BLOCK_BYTES))
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            if head[:2] == b"\x1f\x8b":
                file = stack.enter_context(cast(IO[bytes], gzip.GzipFile(fileobj=file)))
                head = file.read(_HEAD_BYTES)
                file.seek(0)
            if head[:4] == b"PAR1":
                header, records = _parquet(file, uri)
            else:
                header, records = _text(file, head, uri)
        except StorageError:
            raise
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise ManifestError(_unreadable(uri, error)) from None
        yield Table(uri, header, _guarded(records, uri))


def show(names: Sequence[str], most: int = 20) -> str:
    """Format column names for a message, cut if they are long or many, without control characters."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) + "..." * (len(name) > 40) for name in names]
    return ", ".join(shown[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def as_split(text: str) -> str:
    """Return the name of a split as shards have it: `val` for what tables call `validation`, `dev` and the like."""
    name = text.strip()
    return next((split for split, names in _SPLITS.items() if name.lower() in names), name)


def as_text(value: Any) -> str:
    """Return a record's value as the text that a CSV would have; '' for null and NaN.

    Whole floats lose their '.0': columns of whole numbers with gaps often become floats.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")
    if isinstance(value, datetime.timedelta):
        return str(value.total_seconds())
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def is_text(text: str) -> bool:
    """Return whether a text can be written as UTF-8; bytes that were none are kept as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(file: IO[bytes], head: bytes, uri: str) -> tuple[list[str], Iterator[dict[str, Any] | ParseError]]:
    """Read a CSV, TSV or JSON lines."""
    first = re.split(rb"[\r\n]", head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"), maxsplit=1)[0]
    if not head.strip():
        raise ManifestError(f"{uri} is empty; expected a table with a header line")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ManifestError(f"{uri} is UTF-16 text; save it as UTF-8")
    opening = first.lstrip()[:1]
    if opening == b"[" and (b'"' in first or first.strip() == b"["):
        raise ManifestError(f"{uri} is one JSON list; write one object per line (JSON lines)")
    is_long = len(first) == _HEAD_BYTES and opening != b"{"
    if is_long or any(byte < 32 and byte not in b"\t\r\f\x1b" for byte in first):
        raise ManifestError(
            f"{uri} is binary data, not a table; give CSV, TSV, JSON lines or Parquet, or tars of clips"
        )
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    if opening == b"{":
        return _json_lines(_limited(lines), uri)
    return _csv(CsvReader(lines, _delimiter(first, uri)), uri)


def _delimiter(first: bytes, uri: str) -> str:
    """Return what separates columns, known by the header line: a comma, or else what it has instead."""
    if uri.lower().removesuffix(".gz").endswith(".tsv") or (b"\t" in first and b"," not in first):
        return "\t"
    bare = re.sub(rb'"[^"]*"', b"", first)
    found = next((mark for mark in ",;|" if mark.encode() in bare), ",")
    if found != ",":
        logger.info("%s: %r separates the columns", uri, found)
    return found


def _limited(lines: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines, overlong ones in pieces."""
    while line := lines.readline(LINE_CHARS):
        yield line


def _csv(table: CsvReader, uri: str) -> tuple[list[str], Iterator[dict[str, Any] | ParseError]]:
    try:
        header = [name.strip() for name in table.header()]
    except csv.Error as error:
        raise ManifestError(f"{uri} has no header line that can be read: {error}") from None
    if odd := [name for name in header if not is_text(name)]:
        raise ManifestError(f"{uri} names a column {show(odd[:1])!r} that is not UTF-8; save the file as UTF-8")
    _check_distinct(header, uri)
    return header, table.records(header)


def _check_distinct(header: Sequence[str], uri: str) -> None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise ManifestError(f"{uri} names column {show(repeated[:1])!r} twice; rename one of them")


def _json_lines(lines: Iterator[str], uri: str) -> tuple[list[str], Iterator[dict[str, Any] | ParseError]]:
    records = (_json_record(line) for line in lines if line.strip())
    peeked = list(itertools.islice(records, _PEEKED))
    header = dict.fromkeys(name for record in peeked if isinstance(record, dict) for name in record)
    if not header:
        raise ManifestError(f"{uri} is not JSON lines: none of the first {len(peeked)} lines is a JSON object")
    return list(header), itertools.chain(peeked, records)


def _json_record(line: str) -> dict[str, Any] | ParseError:
    if len(line) >= LINE_CHARS:
        return ParseError(f"a line of {LINE_CHARS} characters and more")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = "nested or numbered beyond measure"
        if isinstance(error, json.JSONDecodeError):
            message = f"{error.msg.removesuffix(' at')}, character {error.pos + 1}"
        return ParseError(f"no JSON: {message}")
    return record if isinstance(record, dict) else ParseError(f"a JSON {type(record).__name__}, not an object")


def _holds_bytes(kind: pa.DataType) -> bool:
    """Check whether a column, or a part of its records or lists, holds bytes."""
    fields = [kind.field(number).type for number in range(kind.num_fields)]
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return is_bytes or pa.types.is_fixed_size_binary(kind) or any(map(_holds_bytes, fields))


def _parquet(file: IO[bytes], uri: str) -> tuple[list[str], Iterator[dict[str, Any] | ParseError]]:
    table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)  # by pages, not by whole row groups
    _check_distinct(table.schema_arrow.names, uri)
    # Columns of bytes hold videos, not words.
    names = [field.name for field in table.schema_arrow if not _holds_bytes(field.type)]
    if left := [name for name in table.schema_arrow.names if name not in names]:
        logger.info("%s: %s: columns of bytes are not read; videos belong into files, or into tars", uri, show(left))

    def records() -> Iterator[dict[str, Any] | ParseError]:
        for batch in table.iter_batches(_BATCH_ROWS, columns=names):
            try:
                yield from batch.to_pylist()
            except (ValueError, OverflowError):  # text that is not UTF-8, times out of range: find the rows
                yield from (_parquet_record(batch.slice(row, 1)) for row in range(batch.num_rows))

    return names, records()


def _parquet_record(batch: pa.RecordBatch) -> dict[str, Any] | ParseError:
    values, broken = {}, []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError):
            broken.append(name)
    return ParseError(f"no readable value in {show(broken)}", values) if broken else values


def _guarded(records: Iterable[dict[str, Any] | ParseError], uri: str) -> Iterator[dict[str, Any] | ParseError]:
    """Yield the records; a file that breaks off in the middle is one clear error."""
    try:
        yield from records
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise ManifestError(_unreadable(uri, error)) from None


def _unreadable(uri: str, error: Exception) -> str:
    """Return why a file can't be read, without what is in it."""
    if isinstance(error, FileNotFoundError):
        return f"no manifest at {uri}; give CSV, TSV, JSON lines or Parquet, or tars of clips"
    if isinstance(error, IsADirectoryError):
        return f"{uri} is a folder without tables or tars"
    if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error | pa.ArrowException):
        return f"{uri} is damaged or cut off ({type(error).__name__}); get it anew"
    assert isinstance(error, OSError)
    return f"cannot read {uri}: {error.strerror or type(error).__name__}"

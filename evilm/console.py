"""Show log lines: plain on a pipe or in a job log; coloured, with progress bars, on a terminal."""

import atexit
import codecs
import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from evilm.config.secrets import public_text

_CHATTY = ("mlflow", "alembic", "botocore", "aiobotocore", "s3fs", "fsspec")
_CLOCK = "%H:%M:%S"
_PROGRESS = re.compile(
    r"(?:\d\d:\d\d:\d\d )?(?:(?P<title>[^:|]+): |(?=step))(?:step )?"
    r"(?P<done>[\d,]+)(?: of |/)(?P<total>[\d,]+)(?P<rest>.*)"
)
"""Lines such as `frames: 50 of 2,400 clips, ...` and `step 20/504 (epoch 1) | ...`."""
_STILL_S = 10.0

logger = logging.getLogger(__name__)


class _Public(logging.Formatter):
    """A formatter that removes users, passwords and signatures of URLs from all lines."""

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record))


def log_to_console() -> None:
    """Send our log lines to stderr with the time of day, once per process and independent of Ray's root logger.

    On a terminal, progress lines become a bar, also those that Ray prints for other processes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that isn't UTF-8 is no reason to fail
    ours = logging.getLogger("evilm")
    if not ours.handlers:
        if sys.stderr.isatty():
            handler: logging.Handler = _TerminalHandler(_Terminal(sys.stderr))
        else:
            handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Public("%(asctime)s %(message)s", datefmt=_CLOCK))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each retry; callers report the outcome


@contextmanager
def announce(what: str, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Log what is being waited for, and again every ten seconds until the block ends, or `is_over` returns True."""
    began, over = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not over.wait(_STILL_S):
            if is_over():
                return
            logger.info("still %s (%.0f s)", what, time.monotonic() - began)

    logger.info("%s", what)
    threading.Thread(target=repeat, name="announce", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def as_time(seconds: float) -> str:
    """Return a length of time as people say it: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print a command's summary to stdout: its main fields on a terminal, one line of JSON elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False, markup=False, soft_wrap=True).print("\n".join(_readable(summary)))
        return
    is_unicode = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print(json.dumps(summary, sort_keys=True, ensure_ascii=not is_unicode), flush=True)


def _readable(summary: Mapping[str, Any]) -> Iterator[str]:
    """Write the numbers and names in a summary, and where the rest is."""
    for name, value in summary.items():
        if isinstance(value, (str, int, float)) and value != "":
            yield f"  {name}: {_short(value)}"
        elif name in ("val", "metrics") and isinstance(value, Mapping):
            yield f"  {name}: " + "  ".join(f"{key} {_figure(figure)}" for key, figure in value.items())
    if out := summary.get("out"):
        yield f"  full summary: {out}/summary.json"


def _figure(figure: Any) -> str:
    """Write a figure; one of a benchmark beside chance."""
    if not isinstance(figure, Mapping):
        return _short(figure)
    chance = figure.get("chance")
    return _short(figure.get("value")) + ("" if chance is None else f" (chance {_short(chance)})")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


class _Terminal(io.TextIOBase):
    """A terminal with log lines above one progress bar; takes the place of sys.stderr, where Ray prints to."""

    def __init__(self, terminal: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._console = Console(file=terminal, highlight=False, markup=False, soft_wrap=True)
        text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), text)
        self._progress = Progress(
            *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._lock = threading.RLock()
        self._partial = ""
        self._terminal = terminal
        sys.stderr = self
        atexit.register(self._progress.stop)

    def show(self, line: str, level: int = logging.INFO) -> None:
        """Show a line: as the state of the bar if it is a progress line, else above the bar."""
        from rich.text import Text

        found = _PROGRESS.fullmatch(line)
        with self._lock:
            if found and (done := _number(found["done"])) < (total := _number(found["total"])):
                self._advance((found["title"] or "training").strip(), done, total, found["rest"])
                return
            if found:
                self._progress.stop()
            style = "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""
            self._console.print(Text(line, style))

    def _advance(self, title: str, done: int, total: int, rest: str) -> None:
        """Set the bar to this state; a bar of another title is removed."""
        for task in list(self._progress.tasks):
            if task.description != title:
                self._progress.remove_task(task.id)
        text = f"{done:,} of {total:,}{rest}"
        if self._progress.tasks:
            self._progress.update(self._progress.tasks[0].id, completed=done, total=total, text=text)
        else:
            self._progress.add_task(title, completed=done, total=total, text=text)
        self._progress.start()

    def write(self, text: str) -> int:
        """Take what other code prints to stderr, line by line."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self.show(line)
        return len(text)

    def flush(self) -> None:
        """Show a line that has not ended yet."""
        with self._lock:
            line, self._partial = self._partial, ""
        if line:
            self.show(line)

    def isatty(self) -> bool:
        """Return True, as the terminal does."""
        return True

    def fileno(self) -> int:
        """Return the terminal's file descriptor."""
        return self._terminal.fileno()


class _TerminalHandler(logging.Handler):
    """Sends log records to a terminal."""

    def __init__(self, terminal: _Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.show(self.format(record), record.levelno)


def _number(text: str) -> int:
    return int(text.replace(",", ""))

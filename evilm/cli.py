"""The whole of a command: parse the command line, call one function, end with its summary as one JSON line.

SIGTERM, which `ray job stop` and schedulers send, ends a command as Ctrl-C does: by KeyboardInterrupt.
"""

import importlib
import json
import signal
import sys
import threading
from typing import NoReturn

from evilm.config.command_line import fail, parse
from evilm.config.secrets import public_text
from evilm.console import log_to_console
from evilm.errors import EvilmError, UsageError

_EXIT_FAILED = 1

_received: list[int] = []
"""Signals heard. An exception can't tell which: Ray's calls raise a plain KeyboardInterrupt in place of ours."""


def run(stage: str, target: str, tracked: bool = True) -> None:
    """Run a command.

    Args:
        stage: name of the command, its section in presets.
        target: `module:function`, imported only after the command line was understood, so that --help and a wrong
            flag answer at once. The function takes the command's settings and returns the summary; one that tells of
            `num_problems` ends in exit code 1.
        tracked: record settings and summary as an MLflow run; a training command does it itself, point by point.
    """
    config = parse(stage)
    log_to_console()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    module, function = target.split(":")
    try:
        work = getattr(importlib.import_module(module), function)
        if tracked:
            from evilm.tracking.track_run import track

            summary = track(stage, work, config)
        else:
            summary = work(config)
    except UsageError as error:
        fail(str(error))
    except EvilmError as error:
        print(f"error: {public_text(str(error))}", file=sys.stderr)
        raise SystemExit(_EXIT_FAILED) from None
    except KeyboardInterrupt as interrupt:  # a training's own kind says more
        _end(interrupt)
    print(json.dumps(summary, sort_keys=True, ensure_ascii=False), flush=True)
    if summary.get("num_problems"):
        raise SystemExit(_EXIT_FAILED)


def _interrupt(number: int, _: object) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


def _end(interrupt: KeyboardInterrupt) -> NoReturn:
    """Say how to go on, and end with what a shell expects of the signal: 130 or 143."""
    if _received:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray lets go of its processes now, which must not break off
    print(str(interrupt) or "interrupted; the same command goes on from here", file=sys.stderr)
    raise SystemExit(getattr(interrupt, "exit_code", 128 + (_received or [signal.SIGINT])[0])) from None

"""Run one command: parse flags, call its function, print its summary.

SIGTERM, sent by `ray job stop` and schedulers, raises KeyboardInterrupt like Ctrl-C.
"""

import importlib
import signal
import sys
import threading
from typing import NoReturn

from evilm.config.command_line import fail, parse
from evilm.config.secrets import public_text
from evilm.console import log_to_console, print_summary
from evilm.errors import EvilmError, UsageError
from evilm.io.retries import check_first_contact

_EXIT_FAILED = 1

_received: list[int] = []
"""Signals received. Exceptions can't carry the number: Ray's calls replace ours by a plain KeyboardInterrupt."""


def run(stage: str, target: str, tracked: bool = True) -> None:
    """Run a command.

    Args:
        stage: name of the command, its section in presets.
        target: `module:function`, imported only after parsing, so that --help and wrong flags answer at once. The
            function takes the command's settings and returns the summary; `num_problems` in it gives exit code 1.
        tracked: record settings and summary as an MLflow run; training commands do that themselves, with all metrics.
    """
    config = parse(stage)
    log_to_console()
    check_first_contact()
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
        from evilm.tracking.experiment import print_runs_page
        from evilm.tracking.mlflow_calls import suppress_tracking_errors

        with suppress_tracking_errors("show the page of its runs"):
            print_runs_page(summary)
        print_summary(summary)
    except UsageError as error:
        fail(str(error))
    except EvilmError as error:
        print(f"error: {public_text(str(error))}", file=sys.stderr)
        raise SystemExit(_EXIT_FAILED) from None
    except KeyboardInterrupt as interrupt:  # a training raises a subclass with a message and exit code
        _end(interrupt)
    if summary.get("num_problems"):
        raise SystemExit(_EXIT_FAILED)


def _interrupt(number: int, _: object) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


def _end(interrupt: KeyboardInterrupt) -> NoReturn:
    """Print how to continue, and exit with the code of the signal, 130 or 143."""
    if _received:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # don't interrupt Ray's shutdown of its processes
    print(str(interrupt) or "interrupted; run the same command again to continue", file=sys.stderr)
    raise SystemExit(getattr(interrupt, "exit_code", 128 + (_received or [signal.SIGINT])[0])) from None

"""The whole of a door: parse the command line, call one function, end with its summary as one JSON line."""

import importlib
import json
import sys

from evilm.config.door import fail, parse
from evilm.errors import EvilmError, UsageError
from evilm.train.console import log_to_console

_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


def run(door: str, target: str, tracked: bool = True) -> None:
    """Run a door.

    Args:
        door: name of the door, its section in presets.
        target: `module:function`, imported only after the command line was understood, so that --help and a wrong
            flag answer at once. The function takes the door's settings and returns the summary; one that tells of
            `num_problems` ends in exit code 1.
        tracked: record settings and summary as an MLflow run; a training door does it itself, point by point.
    """
    config = parse(door)
    log_to_console()
    module, function = target.split(":")
    try:
        work = getattr(importlib.import_module(module), function)
        if tracked:
            from evilm.train.offline import track

            summary = track(door, work, config)
        else:
            summary = work(config)
    except UsageError as error:
        fail(str(error))
    except EvilmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(_EXIT_FAILED) from None
    except KeyboardInterrupt as interrupt:  # a training's own kind says more
        print(str(interrupt) or "interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(getattr(interrupt, "exit_code", _EXIT_INTERRUPTED)) from None
    print(json.dumps(summary, sort_keys=True, ensure_ascii=False), flush=True)
    if summary.get("num_problems"):
        raise SystemExit(_EXIT_FAILED)

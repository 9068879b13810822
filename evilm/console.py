"""Set up the log lines in a terminal or job log: our messages, and the warnings of libraries."""

import logging
import sys

from evilm.config.secrets import public_text

_CHATTY = ("mlflow", "alembic", "botocore", "aiobotocore", "s3fs", "fsspec")


class _Public(logging.Formatter):
    """A formatter that removes users, passwords and signatures of URLs from all lines."""

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record))


def log_to_console() -> None:
    """Send our log lines to stderr with the time of day, once per process and independent of Ray's root logger."""
    ours = logging.getLogger("evilm")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Public("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each retry; callers report the outcome

"""Log lines that a person reads in a terminal or a job's log: ours, and warnings of the libraries."""

import logging
import sys

from evilm.config.secrets import public_text

_CHATTY = ("mlflow", "alembic", "botocore", "aiobotocore", "s3fs", "fsspec")


class _Public(logging.Formatter):
    """Lines without users, passwords and signatures of URLs, whoever put them there."""

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record))


def log_to_console() -> None:
    """Send our lines to stderr with the time of day; once per process, whatever Ray does to the root logger."""
    ours = logging.getLogger("evilm")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Public("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry; what comes of them, others tell

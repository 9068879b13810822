"""Log lines that a person reads in a terminal or a job's log: ours, and warnings of the libraries."""

import logging
import sys

_FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
_CHATTY = ("mlflow", "alembic", "botocore", "aiobotocore", "s3fs", "fsspec")


def log_to_console() -> None:
    """Send our lines to stderr with the time of day; once per process, whatever Ray does to the root logger."""
    ours = logging.getLogger("evilm")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_FORMAT)
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry; what comes of them, others tell

"""Convert a failure of an object store to an error about the requested video."""

import errno
import tempfile

from evilm.errors import AccessError, ConfigError, DecodeError, ShardError
from evilm.io.retries import TransientError
from evilm.video.download import transient
from evilm.video.reasons import RejectReason


def judge(error: Exception) -> TransientError:
    """Classify a failure of an object store; return a temporary one.

    Raises:
        DecodeError: the failure is permanent.
        AccessError: there are no credentials.
        ConfigError: there is no such bucket.
    """
    kind, cause = type(error).__name__, error
    while not hasattr(cause, "response") and cause.__cause__ is not None:
        assert isinstance(cause.__cause__, Exception)
        cause = cause.__cause__
    answer = getattr(cause, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            raise ConfigError("there is no such bucket of videos; check --videos and the AWS variables") from None
        if status == 404:
            raise DecodeError(RejectReason.MISSING_FILE, "" if code in ("404", "NoSuchKey") else code) from None
        if status >= 500 or status in (408, 429) or code in ("SlowDown", "RequestTimeout", "ThrottlingException"):
            return transient(RejectReason.FETCH_ERROR, f"S3 answers {status} {code}")
        raise DecodeError(RejectReason.FETCH_ERROR, f"S3 answers {status} {code}") from None
    if isinstance(error, FileNotFoundError):
        raise DecodeError(RejectReason.MISSING_FILE) from None
    if isinstance(error, IsADirectoryError):
        raise DecodeError(RejectReason.NOT_A_FILE, "a folder") from None
    if "Credentials" in kind:
        raise AccessError(f"no credentials for the object store ({kind}); set the AWS variables") from None
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return transient(RejectReason.FETCH_TIMEOUT, "the object store did not answer in time")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise ShardError(f"no space in {tempfile.gettempdir()} for videos; free some or set TMPDIR") from None
    return transient(RejectReason.FETCH_ERROR, kind)

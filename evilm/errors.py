"""The errors for users. Messages state the value, what is accepted, and what to do.

Every class also inherits from the standard error it refines, and can be pickled to cross Ray's processes.
"""


class EvilmError(Exception):
    """Base of all errors caused by the user's input or environment rather than by our code."""


class ConfigError(EvilmError, ValueError):
    """A flag, preset or combination of settings that can't work."""


class UsageError(ConfigError):
    """A command line that is wrong by itself, independent of any files: exit code 2."""


class ManifestError(EvilmError, ValueError):
    """A video manifest that can't be read: no such file, no such column."""


class VocabError(EvilmError, ValueError):
    """A vocabulary that can't be built or read."""


class DecodeError(EvilmError, RuntimeError):
    """A video that can't be decoded to frames; `reason` is a value of `evilm.video.reasons.RejectReason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = str(reason), detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class ShardError(EvilmError, RuntimeError):
    """Frame or code shards that are missing, damaged, or do not belong together."""


class StorageError(ShardError, OSError):
    """A file or folder that can't be read or written: no space, no permission, or an object store down for too long."""


class SourceError(ShardError):
    """Videos that can no longer be fetched: a mount, server or network was lost while writing shards."""


class AccessError(SourceError):
    """Videos that one node can't reach, as its mount is gone or it has no credentials; other nodes may reach them."""


class UnfinishedError(ShardError):
    """Some units of a job failed repeatedly; all others are done."""


class HaltedError(EvilmError, RuntimeError):
    """A job that its driver has ended; its remaining tasks commit nothing."""


class OwnershipError(EvilmError, RuntimeError):
    """An output folder that another run writes or has taken over."""


class CheckpointError(EvilmError, RuntimeError):
    """A model, tokenizer or training checkpoint that can't be read or does not fit."""


class CollapseError(EvilmError, RuntimeError):
    """A video tokenizer that uses too little of its codebook for useful labels."""


class NonFiniteError(EvilmError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; every worker raises it at the same step."""


class ClusterError(EvilmError, RuntimeError):
    """A Ray cluster that can't be reached or lacks the requested resources."""

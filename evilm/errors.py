"""The errors a user can meet. Each says what was given, what is accepted and what to do.

Every class is also the standard error it refines, and is picklable, so it crosses Ray's processes whole.
"""


class EvilmError(Exception):
    """Base of all errors that are about the user's input or surroundings, not about our code."""


class ConfigError(EvilmError, ValueError):
    """A flag, preset or combination of settings that can't work."""


class UsageError(ConfigError):
    """A command line that can't be obeyed, whatever lies at the places it names: exit code 2."""


class ManifestError(EvilmError, ValueError):
    """A video manifest (CSV) that can't be read: no such file, no such column."""


class VocabError(EvilmError, ValueError):
    """A vocabulary that can't be built or read."""


class DecodeError(EvilmError, RuntimeError):
    """A video that can't be turned into frames; `reason` is a value of `evilm.video.reasons.RejectReason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = str(reason), detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class ShardError(EvilmError, RuntimeError):
    """Frame or code shards that are missing, damaged, or do not belong together."""


class StorageError(ShardError, OSError):
    """A place that can't be read or written: no space, no rights, or an object store that fails for too long."""


class SourceError(ShardError):
    """Videos that can no longer be fetched: a mount, server or network that went away while shards were made."""


class UnfinishedError(ShardError):
    """Some units of a job failed again and again; all others are done."""


class HaltedError(EvilmError, RuntimeError):
    """A job that its driver has ended; whatever still runs of it commits nothing."""


class OwnershipError(EvilmError, RuntimeError):
    """An output folder that another run is writing, or has taken over."""


class CheckpointError(EvilmError, RuntimeError):
    """A model, tokenizer or training checkpoint that can't be read or does not fit."""


class CollapseError(EvilmError, RuntimeError):
    """A video tokenizer that uses too little of its codebook to give useful labels."""


class NonFiniteError(EvilmError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; every worker raises it at the same step."""


class ClusterError(EvilmError, RuntimeError):
    """A Ray cluster that can't be reached or can't give what is asked of it."""

"""Watch a job for clips that fail, and end it early.

A lost mount must not produce thousands of empty shards, and a broken data set must not take days to be noticed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evilm.errors import ShardError, SourceError
from evilm.ingest.quarantine import RejectCounts
from evilm.jobs import commits
from evilm.manifests.rows import BadRow
from evilm.video.reasons import RejectReason

LOST = frozenset(
    {RejectReason.FETCH_ERROR, RejectReason.FETCH_TIMEOUT, RejectReason.MISSING_FILE, RejectReason.SOURCE_CHANGED}
)
"""Reasons that may be gone in another run: a mount, server or network was down, a tar was being rewritten."""
ENOUGH_CLIPS = 200
"""Clips that must have been requested before a job may end because too many can't be fetched."""
_WINDOW_CLIPS = 5000
"""Size of the window of latest clips in which the share that can't be fetched is measured."""


def too_many(lost: int, asked: int, share: float) -> bool:
    """Return whether `lost` of `asked` clips is significantly more than the allowed `share`.

    Clips come in random order. The margin of four standard deviations spares a manifest just below the limit.
    """
    return asked >= ENOUGH_CLIPS and lost > share * asked + 4 * (share * (1 - share) * asked) ** 0.5


def lost_error(lost: int, asked: int, share: float, example: BadRow) -> SourceError:
    """Build the error that ends a job whose videos can't be fetched."""
    return SourceError(
        f"{lost} of the last {asked} videos could not be fetched, e.g. {example.path or example.clip_id!r}: "
        f"{example.reason} {example.detail[:200]}".rstrip()
        + where_hint(example.reason, example.detail)
        + f"; max_failed_share = {share:g}; fix --videos, its mount or the network and run the same command again"
    )


def where_hint(reason: str, detail: str) -> str:
    """Name the flags that locate videos, for a clip whose path was tried and is not a file; '' for other failures."""
    if reason != RejectReason.MISSING_FILE or not detail.startswith("no "):
        return ""
    return "; check --videos, and the column of paths (--columns.path) or of folders (--columns.page-dir) below it"


def bad_rows(record: dict[str, Any]) -> Iterator[BadRow]:
    """Yield the quarantined rows of a commit record."""
    return (BadRow(**{**row, "reason": RejectReason(row["reason"])}) for row in record["bad"])


class FailureBudget:
    """End a job if its videos can no longer be fetched, or if too many fail for any reason.

    Args:
        run: number of the run that owns `out`.
        unit_of: returns the unit that the shard of a task is committed as.
        max_failed_share: allowed share of clips that can't be fetched, among the latest ones.
        allowance: share of all clips of the job that may fail; with more, the whole output would be rejected.
    """

    def __init__(
        self, out: str, run: int, unit_of: Callable[[str], commits.Unit], max_failed_share: float, allowance: float
    ) -> None:
        self._out, self._run, self._unit_of, self._share = out, run, unit_of, max_failed_share
        self._allowance = min(max(allowance, 0.0), 1.0)
        self._all_asked = self._all_failed = 0
        self._empty: list[str] = []
        self._recent: deque[tuple[str, int, int]] = deque()
        self._asked = self._lost = 0
        self._passed: set[str] = set()

    def add(self, task: str, tally: commits.Tally) -> None:
        """Count a finished shard.

        Raises:
            SourceError: too many of the last clips could not be fetched.
            ShardError: too many of all clips failed.
        """
        asked = tally.num_clips + tally.num_failed
        self._recent.append((task, asked, tally.num_lost))
        self._asked, self._lost = self._asked + asked, self._lost + tally.num_lost
        while self._asked - self._recent[0][1] >= _WINDOW_CLIPS:
            before, asked, lost = self._recent.popleft()
            self._asked, self._lost = self._asked - asked, self._lost - lost
            self._passed.add(before)
        if too_many(self._lost, self._asked, self._share):
            raise lost_error(self._lost, self._asked, self._share, self._example())
        self._all_asked += tally.num_clips + tally.num_failed
        self._all_failed += tally.num_failed
        if not tally.num_clips:
            self._empty.append(task)
        if tally.num_failed and too_many(self._all_failed, self._all_asked, self._allowance):
            raise self._given_up(task)

    def keep(self) -> None:
        """Protect the shards made so far from being taken back: readers may use them."""
        self._passed.update(task for task, _, _ in self._recent)
        self._empty.clear()

    def take_back(self, tasks: Sequence[str]) -> None:
        """Halt the job and revoke its latest shards in which clips are missing that could not be fetched."""
        commits.halt(self._out, self._run)
        units = [self._unit_of(task) for task in tasks if task not in self._passed]
        for unit, record in commits.read_records(self._out, units):
            if record is not None and any(row.reason in LOST for row in bad_rows(record)):
                commits.revoke(self._out, unit, self._run)

    def _given_up(self, task: str) -> ShardError:
        """Halt the job and build its error. Shards stay, as they may have taken days; empty ones are written again."""
        commits.halt(self._out, self._run)
        reasons = RejectCounts()
        for row in bad_rows(commits.read_record(self._out, self._unit_of(task)) or {"bad": []}):
            reasons.add(row)
        for empty in self._empty:
            commits.revoke(self._out, self._unit_of(empty), self._run)
        return ShardError(
            f"{self._all_failed} of the first {self._all_asked} videos failed (last {reasons.top()}): more than "
            f"max_failed_share = {self._share:g} of all rows will be quarantined; fix the input and run the same "
            "command again, with --retry all for videos, or raise --max-failed-share"
        )

    def _example(self) -> BadRow:
        tasks = [task for task, _, lost in self._recent if lost]
        record = commits.read_record(self._out, self._unit_of(tasks[-1]))
        assert record is not None
        return next(row for row in bad_rows(record) if row.reason in LOST)

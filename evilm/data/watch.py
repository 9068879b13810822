"""Watching a job for clips that fail: a mount that went away must not finish thousands of empty shards, and a data set
that is broken must not take days to say so."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from evilm.data import job
from evilm.data.manifest import BadRow
from evilm.data.quarantine import Reasons
from evilm.errors import ShardError, SourceError
from evilm.video.reasons import Reason

LOST = frozenset({Reason.FETCH_ERROR, Reason.FETCH_TIMEOUT, Reason.MISSING_FILE})
"""Reasons that a mount, server or network gives when it goes away."""
ENOUGH_CLIPS = 200
"""Clips that must have been asked for before a job may end because too many can't be got."""
_WINDOW_CLIPS = 5000
"""Clips over which the share of those that can't be got is watched."""


def too_many(lost: int, asked: int, share: float) -> bool:
    """Whether so many clips that can't be got prove that their share among all is above `share`.

    Clips come in random order. Four standard deviations leave alone a manifest whose share is just below.
    """
    return asked >= ENOUGH_CLIPS and lost > share * asked + 4 * (share * (1 - share) * asked) ** 0.5


def lost_error(lost: int, asked: int, share: float, example: BadRow) -> SourceError:
    """Says that the job ends because videos can't be got."""
    return SourceError(
        f"{lost} of the last {asked} videos could not be got, e.g. {example.path or example.clip_id!r}: "
        f"{example.reason} {example.detail[:200]}".rstrip()
        + f"; max_failed_share = {share:g}; mend --videos, its mount or the network and run the same command again"
    )


def bad_rows(record: dict[str, Any]) -> Iterator[BadRow]:
    """The rows that a commit record puts aside."""
    return (BadRow(**{**row, "reason": Reason(row["reason"])}) for row in record["bad"])


class Watch:
    """Ends a job whose videos can't be got any more, or of which too many fail for any reason.

    Args:
        out: where the commits are.
        job_id: the job.
        max_failed_share: of clips that can't be got, among the last ones.
        allowance: share of all the job's clips that may fail, or the whole output can't be good enough.
    """

    def __init__(self, out: str, job_id: str, max_failed_share: float, allowance: float) -> None:
        self._out, self._job, self._share = out, job_id, max_failed_share
        self._allowance = min(max(allowance, 0.0), 1.0)
        self._all_asked = self._all_failed = 0
        self._empty: list[str] = []
        self._recent: deque[tuple[str, int, int]] = deque()
        self._asked = self._lost = 0
        self._passed: set[str] = set()

    def add(self, unit: str, tally: job.Tally) -> None:
        """Count a finished shard.

        Raises:
            SourceError: too many of the last clips could not be got.
            ShardError: too many of all clips failed.
        """
        asked = tally.num_clips + tally.num_failed
        self._recent.append((unit, asked, tally.num_lost))
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
            self._empty.append(unit.partition("/")[2])
        if tally.num_failed and too_many(self._all_failed, self._all_asked, self._allowance):
            raise self._given_up(unit)

    def take_back(self, units: Sequence[str]) -> None:
        """Halt the job, and take back its last shards that lack clips which could not be got."""
        job.halt(self._out, self._job)
        names = [unit.partition("/")[2] for unit in units if unit not in self._passed]
        for name, record in job.read_records(self._out, names):
            if record is not None and any(row.reason in LOST for row in bad_rows(record)):
                job.revoke(self._out, name)

    def _given_up(self, unit: str) -> ShardError:
        """Halt the job: shards stay as they may have taken days, but those without a clip are made anew next time."""
        job.halt(self._out, self._job)
        reasons = Reasons()
        for row in bad_rows(job.read_record(self._out, unit.partition("/")[2]) or {"bad": []}):
            reasons.add(row)
        for name in self._empty:
            job.revoke(self._out, name)
        return ShardError(
            f"{self._all_failed} of the first {self._all_asked} videos failed (last {reasons.top()}): more than "
            f"max_failed_share = {self._share:g} of all rows will be quarantined; mend the input and run the same "
            "command again, with --retry all for videos, or raise --max-failed-share"
        )

    def _example(self) -> BadRow:
        units = [unit for unit, _, lost in self._recent if lost]
        record = job.read_record(self._out, units[-1].partition("/")[2])
        assert record is not None
        return next(row for row in bad_rows(record) if row.reason in LOST)

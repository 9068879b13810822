"""Attempts of a run: which checkpoint each started from."""

from evilm.train.attempts import begin_attempt, lineage


def test_lineage_follows_restarts(out_uri: str) -> None:
    assert begin_attempt(out_uri, 0, "", 2) == 1
    assert begin_attempt(out_uri, 8, "step_00000008-001", 1) == 2
    assert begin_attempt(out_uri, 4, "step_00000004-001", 2) == 3, "the newest was damaged"
    assert lineage(out_uri) == [(1, 0, 4), (3, 4, None)]
    assert begin_attempt(out_uri, 6, "step_00000006-003", 2) == 4
    assert lineage(out_uri) == [(1, 0, 4), (3, 4, 6), (4, 6, None)]
    assert begin_attempt(out_uri, 0, "", 2) == 5, "nothing was left"
    assert lineage(out_uri) == [(5, 0, None)]

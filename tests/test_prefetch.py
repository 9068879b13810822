"""Work done in threads ahead of the one who waits for it."""

import threading
import time
from collections.abc import Iterator

import pytest

from evilm.prefetch import map_ahead


def test_results_come_in_the_order_of_items() -> None:
    assert list(map_ahead(lambda n: (time.sleep(0.01 * (3 - n)), n)[1], range(4), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("ahead", "taken"), [(None, 3), (0, 1), (5, 6)])
def test_no_more_items_are_taken_than_are_worked_on(ahead: int | None, taken: int) -> None:
    items = iter(range(100))
    results = map_ahead(lambda n: n, items, 2, ahead)
    assert next(results) == 0
    assert next(items) == taken
    results.close()


def test_an_error_is_raised_where_its_result_was_due() -> None:
    results = map_ahead(lambda n: 1 // (2 - n), range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_closes_the_items_and_waits_for_what_has_begun() -> None:
    closed, done = [], []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    def work(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    results = map_ahead(work, items(), 2)
    next(results)
    results.close()
    assert closed == [True]
    assert done
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_results_that_nobody_took_are_discarded_without_waiting() -> None:
    discarded: list[int] = []
    hangs = threading.Event()
    results = map_ahead(lambda n: n if n < 2 else hangs.wait(30) and n, range(9), 3, discard=discarded.append)
    assert next(results) == 0
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 10
    hangs.set()
    while len(discarded) < 2 and time.monotonic() - began < 20:
        time.sleep(0.01)
    assert sorted(discarded)[:2] == [1, 2]

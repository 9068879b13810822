"""Do work in threads ahead of the one who waits for it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int | None = None,
    name: str = "ahead",
    discard: Callable[[Result], None] | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order, computed by threads before it is asked for.

    Items are taken in the caller's thread. Closing the generator cancels what has not begun, waits for the rest, and
    closes `items` where that is a generator too.

    Args:
        function: what the threads do.
        items: taken only as far as they are worked on.
        threads: how many work at a time.
        ahead: results computed or in the making while the caller uses one; as many as threads if not given.
        name: of the threads.
        discard: gets the results that nobody took; closing then waits for nothing.
    """
    waiting: deque[Future[Result]] = deque()
    ahead = threads if ahead is None else ahead
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=discard is None, cancel_futures=True)
        if isinstance(items, Generator):
            items.close()
        if discard:
            for future in waiting:
                future.add_done_callback(partial(_discard, discard))


def _discard(discard: Callable[[Result], None], future: Future[Result]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())

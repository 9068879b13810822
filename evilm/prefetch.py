"""Do work in threads ahead of the one who waits for it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int | None = None,
    name: str = "ahead",
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
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()

"""A store in memory, at `flaky://`, whose reads and uploads fail as often as a test wants."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyStore(MemoryFileSystem):
    """Raises one of `failures` for each file that is opened or uploaded, until none is left."""

    protocol = "flaky"
    cachable = False
    failures: ClassVar[list[OSError]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._fail()
        return super()._open(path, mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        """Upload a file."""
        self._fail()
        super().put_file(lpath, rpath, *args, **kwargs)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop()


fsspec.register_implementation("flaky", FlakyStore, clobber=True)

"""Several pytest processes at work on one run: what all need is built by one; which files they take first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


def build_once(folder: Path, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `build`, which fills `folder`, unless another process did; wait while one does.

    Returns:
        What `build` returned, as JSON holds it.
    """
    done = folder.with_name(f"{folder.name}.json")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a build that failed
            done.write_text(json.dumps(build()))
        return json.loads(done.read_text())


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by file: those that take longest first, as far as marks and fixtures show it.

    Only one of the files that need the small workflow comes at the very beginning. The process that takes it builds the
    workflow, while the others have files to do that don't wait for it.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    ranked = sorted(files.values(), key=lambda tests: -sum(map(_weight, tests)))
    waiting = [tests for tests in ranked if any("small_workflow" in _fixtures(test) for test in tests)]
    others = [tests for tests in ranked if tests not in waiting]
    return [item for tests in [*waiting[:1], *others[:20], *waiting[1:], *others[20:]] for item in tests]


def _weight(test: pytest.Item) -> float:
    """A guess at the seconds that a test takes."""
    if test.get_closest_marker("long"):
        return 40
    if test.get_closest_marker("slow"):
        return 10
    return 2 if "ray_local" in _fixtures(test) else 0.1


def _fixtures(test: pytest.Item) -> list[str]:
    return getattr(test, "fixturenames", [])

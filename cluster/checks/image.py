"""Check the Dockerfile: valid instructions, pinned packages in the versions of constraints.txt, existing files."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

from checks.commands import TOP

_INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "LABEL", "EXPOSE", "ENTRYPOINT", "CMD"}
_LOCK = "cluster/requirements.txt"
_NEEDED = {"evilm", "pipelines", "tune", "pyproject.toml", "constraints.txt", _LOCK, "cluster/spot_watch.py"}
"""Files that commands and cluster files need in the image."""
_PINNED = ("--require-hashes", "--constraint constraints.txt", "--no-deps --no-build-isolation")
"""Options of pip, one of which keeps an install from choosing versions."""

INSTALLED = "evilm.__version__"
"""Exists in the complete package, but not in an empty one or in a folder of that name."""


def check(path: Path) -> list[str]:
    """Check a Dockerfile and its .dockerignore, and return one line per problem."""
    steps = list(steps_of(path.read_text()))
    problems = [f"{word} is not an instruction" for word, _ in steps if word not in _INSTRUCTIONS]
    problems += _bases([rest for word, rest in steps if word == "FROM"])
    copied = [_copied(rest) for word, rest in steps if word == "COPY"]
    problems += _files({name for names in copied for name in names}, ignore_file(path))
    version = ray_version()
    if not any(word == "RUN" and f"ray.__version__ == '{version}'" in rest for word, rest in steps):
        problems.append(f"no RUN checks that ray.__version__ == '{version}', as in constraints.txt")
    if not any(word == "RUN" and "cd / && python" in rest and INSTALLED in rest for word, rest in steps):
        problems.append(f"no RUN checks {INSTALLED} outside of our sources: the installed package may be empty")
    for word, rest in steps:
        if word == "RUN" and "pip install" in rest and not any(option in rest for option in _PINNED):
            problems.append(f"pip install without one of {', '.join(_PINNED)}: nodes could differ")
    return problems + check_lock((TOP / _LOCK).read_text())


def check_lock(text: str) -> list[str]:
    """Check that no package of the image is missing, and each has digests and the version in constraints.txt."""
    wanted, lock = dict(_pins((TOP / "constraints.txt").read_text())), re.sub(r"\\\n\s*", "", text)
    problems = [f"{_LOCK}: {line[:60]} has no digest" for line in lock.splitlines() if _has_no_digest(line)]
    locked = dict(_pins(lock))
    for name, version in locked.items():
        if wanted.get(name, version) != version:
            problems.append(f"{_LOCK}: {name} {version} is {wanted[name]} in constraints.txt; update it")
    return problems + [
        f"{_LOCK}: {name} of pyproject.toml is missing; update it" for name in sorted(_needed() - set(locked))
    ]


def _needed() -> set[str]:
    """Return the names of the packages that ours imports, and that sweeps do."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["tune"]]
    return {_normal(re.split(r"[^\w.-]", text)[0]) for text in needed}


def _has_no_digest(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#") and "--hash=sha256:" not in line


def _pins(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name, as PEP 503 spells it, and the version of each pinned package."""
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE):
        yield _normal(name), version


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def ray_version() -> str:
    """Return Ray's version in constraints.txt; nodes with other versions can't join."""
    (version,) = re.findall(r"^ray==(\S+)$", (TOP / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def ignore_file(path: Path) -> list[str]:
    """Return the lines of a Dockerfile's .dockerignore, or of ours if it has none."""
    beside = path.with_name(f"{path.name}.dockerignore")
    return (beside if beside.exists() else TOP / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()


def steps_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield instructions with their arguments, without comments and with continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest


def _bases(bases: list[str]) -> Iterator[str]:
    """Check that every base is Ray's own image of our version and Python, or an earlier stage."""
    ours = f"rayproject/ray:{ray_version()}-py311-cpu"
    stages = {base.partition(" AS ")[2] for base in bases}
    for base in bases:
        image = base.partition(" AS ")[0]
        if image != ours and image not in stages:
            yield f"FROM {image} is not {ours}: other nodes can't join"


def _copied(rest: str) -> list[str]:
    return [word for word in shlex.split(rest) if not word.startswith("--")][:-1]


def _files(copied: set[str], ignore: list[str]) -> Iterator[str]:
    for name in sorted(copied):
        if not (TOP / name).exists():
            yield f"COPY {name}: it does not exist"
        elif f"!{name}" not in ignore:
            yield f"COPY {name}: Dockerfile.dockerignore excludes it"
    for name in sorted(_NEEDED - copied):
        yield f"{name} is not copied into the image"

"""Check the Dockerfile: valid instructions, the versions of constraints.txt, existing files."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from checks.commands import TOP

_INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "LABEL", "EXPOSE", "ENTRYPOINT", "CMD"}
_NEEDED = {"evilm", "pipelines", "tune", "pyproject.toml", "constraints.txt", "cluster/spot_watch.py"}
"""Files that commands and cluster files need in the image."""

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
        if word == "RUN" and "pip install" in rest and "--constraint constraints.txt" not in rest:
            problems.append("pip install without --constraint constraints.txt: nodes could differ")
    return problems


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

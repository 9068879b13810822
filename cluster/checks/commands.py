"""Check that the commands in files and docs exist and accept their flags."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from evilm.config.command_line import parse
from evilm.config.stages import STAGES

TOP = Path(__file__).parents[2]
_COMMAND = re.compile(r"python\s+(?:\S*/)?(pipelines|tune)/(\w+)\.py([^\n]*)")
_FILE = re.compile(
    r"(?<![\w./-])((?:cluster|pipelines|tune|docs|benchmarks|tests)/[\w./-]+\.(?:py|yaml|json|md)|cluster/Dockerfile)"
)
_END = re.compile(r"\s(?:&&|\|\|?|;|>>?|2>|#|&)(?:\s|$)|`|\)")


def comments(text: str) -> str:
    """Return the comments of a YAML file without their markers."""
    return "\n".join(line.lstrip(" #") for line in text.splitlines() if line.lstrip().startswith("#"))


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Find the commands called in a text: folder and name, and arguments; lines ending in a backslash are joined."""
    for folder, stage, rest in _COMMAND.findall(re.sub(r"\\\n[ \t]*", " ", text)):
        yield f"{folder}/{stage}", shlex.split(_END.split(rest, maxsplit=1)[0])


def check_commands(text: str) -> list[str]:
    """Check the commands in a text and return the problems."""
    problems = []
    for place, arguments in commands_in(text):
        folder, stage = place.split("/")
        said = io.StringIO()
        if stage not in STAGES or STAGES[stage].folder != folder or not (TOP / f"{place}.py").is_file():
            problems.append(f"command {place}.py does not exist")
            continue
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                parse(stage, arguments)
            except SystemExit as stop:
                if stop.code:
                    problems.append(f"{stage}: {said.getvalue().strip().removeprefix('error: ')}")
    return problems


def check_files(text: str) -> list[str]:
    """Find files of the checkout that a text names but that do not exist."""
    return [f"{name} does not exist" for name in sorted(set(_FILE.findall(text))) if not (TOP / name).exists()]

"""Checks of the cluster files, one module per kind of file."""


class Remark(str):
    """A line about a file that works, but costs more or does less than it could; any other line is an error."""


def prefixed(prefix: str, problem: str) -> str:
    """Put a prefix before a problem; a remark stays one."""
    return type(problem)(f"{prefix}: {problem}")

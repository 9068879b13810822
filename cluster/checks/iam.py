"""Check IAM policies: nobody is granted public access, and only read actions may apply to all resources."""

import json
from pathlib import Path
from typing import Any

_ANYWHERE = ("Describe", "Get", "List")
"""Prefixes of actions allowed on all resources; Amazon can't limit most of them to single ones."""


def check(path: Path) -> list[str]:
    """Check a policy and return one line per problem."""
    policy = json.loads(path.read_text())
    problems = [] if policy.get("Version") == "2012-10-17" else ["Version must be 2012-10-17"]
    known = {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}
    for number, statement in enumerate(policy.get("Statement", []), 1):
        name = statement.get("Sid", f"statement {number}")
        problems += [f"{name}: unknown field {field}" for field in set(statement) - known]
        problems += [f"{name}: {problem}" for problem in _statement(statement)]
    return problems


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _statement(statement: dict[str, Any]) -> list[str]:
    problems = []
    if statement.get("Effect") not in ("Allow", "Deny"):
        problems.append("Effect must be Allow or Deny")
    actions = _as_list(statement.get("Action", []))
    problems += [f"action {action} is too wide" for action in actions if "*" in action]
    problems += [f"action {action} has no service" for action in actions if ":" not in action]
    if "Principal" in statement:
        if "*" in json.dumps(statement["Principal"]):
            problems.append("Principal allows everybody")
        return problems
    for resource in _as_list(statement.get("Resource", "*")):
        if resource == "*":
            wide = [action for action in actions if not action.split(":")[-1].startswith(_ANYWHERE)]
            problems += [f"{action} is allowed on all resources" for action in wide]
        elif not resource.startswith("arn:aws:"):
            problems.append(f"{resource} is not a resource")
    narrowed = {"ec2:TerminateInstances", "iam:PassRole", "ec2:CreateTags"} & set(actions)
    if narrowed and not statement.get("Condition"):
        problems.append(f"{', '.join(sorted(narrowed))} without a Condition")
    return problems

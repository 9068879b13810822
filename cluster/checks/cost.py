"""Check the cost per hour in a file's comments: the sums, and that it covers the machines in the file."""

import re
from typing import Any

from checks import Remark

_LINE = re.compile(r"^# +(\w+) +(\d+) x (\S+) +at ([\d.]+) += +([\d.]+)", re.MULTILINE)
_NUMBER = r"\d+(?:\.\d+)?"
_SUM = re.compile(rf"((?:{_NUMBER} [+x] )+{_NUMBER}) = ({_NUMBER})")


def machine(node_config: dict[str, Any]) -> str:
    """Return the machine type of a node."""
    azure = node_config.get("azure_arm_parameters", {})
    return str(node_config.get("InstanceType") or node_config.get("machineType") or azure.get("vmSize"))


def check_cost(text: str, types: dict[str, Any], head: str) -> list[Remark]:
    """Check the table of costs and return remarks: unknown nodes, counts, machine types, sums."""
    problems, seen = [], set()
    for name, count, kind, price, product in _LINE.findall(text):
        seen.add(name)
        if name not in types:
            problems.append(f"cost: there is no node type {name}")
            continue
        most = 1 if name == head else types[name]["max_workers"]
        if int(count) != most:
            problems.append(f"cost: {name} is counted {count} times, the file starts up to {most}")
        if kind != machine(types[name]["node_config"]):
            problems.append(f"cost: {name} is priced as {kind}, the file starts {machine(types[name]['node_config'])}")
        if abs(int(count) * float(price) - float(product)) > 0.006:
            problems.append(f"cost: {count} x {price} is not {product}")
    problems += [f"cost: {name} is not counted" for name in types if name not in seen]
    for terms, total in _SUM.findall(text):
        numbers = [float(term) for term in re.split(r" [+x] ", terms)]
        value = sum(numbers) if "+" in terms else numbers[0] * numbers[1]
        if abs(value - float(total)) > 0.006:
            problems.append(f"cost: {terms} is not {total}")
    return [Remark(problem) for problem in problems]

"""The table of values in the chart's README, made from the comments of values.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

OPEN = ("config", "commonLabels", "secrets", "podSecurityContext", "securityContext", "resources", "service.ports")
"""Trees that templates use whole: their keys are the application's, Kubernetes's or the operator's."""

KEY = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z]+):")
DEFAULT_MAX_CHARACTERS = 60

Tree = dict[str, Any]


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted path and the value of what *tree* ends in; an open tree counts as one."""
    for key, value in tree.items():
        place = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value and place not in OPEN:
            yield from leaves(value, place)
        else:
            yield place, value


def comments(text: str) -> dict[str, str]:
    """Return the comment above each key of *text*, by dotted path; keys of open trees have none of their own."""
    found: dict[str, str] = {}
    path: list[str] = []
    said: list[str] = []
    for line in text.splitlines():
        key = KEY.match(line)
        if line.strip().startswith("#"):
            said.append(line.strip("# "))
            continue
        if key:
            path = [*path[: len(key["indent"]) // 2], key["name"]]
            if said and not any(is_below(".".join(path), tree) for tree in OPEN):
                found[".".join(path)] = " ".join(said)
        said = []
    return found


def is_below(path: str, tree: str) -> bool:
    """Return whether *path* lies in *tree*, and is not *tree* itself."""
    return path.startswith(f"{tree}.")


def table(text: str) -> str:
    """Return the Markdown table of the values that *text*, a values.yaml, explains."""
    said = comments(text)
    rows = [f"| `{path}` | {shown(value)} | {said.get(path, '').replace('<', '&lt;')} |" for path, value in leaves(yaml.safe_load(text))]
    return "\n".join(["| Value | Default | Meaning |", "|---|---|---|", *rows]) + "\n"


def shown(value: object) -> str:
    """Return *value* as JSON, or a word for what is too long to show."""
    written = json.dumps(value)
    return f"`{written}`" if len(written) <= DEFAULT_MAX_CHARACTERS else "see values.yaml"

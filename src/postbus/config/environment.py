"""Lay ``POSTBUS__...`` variables over the tree a file gives.

``__`` nests: ``POSTBUS__LISTENERS__SMTP__ADDRESS`` is ``listeners.smtp.address``. The double underscore after the name keeps
clear of what Kubernetes puts into every pod for a Service called postbus (``POSTBUS_PORT``, ``POSTBUS_SERVICE_HOST``).
A value is text, which the settings classes turn into numbers and switches; where a list or a map is wanted and the value
starts with ``[`` or ``{``, it is read as YAML's flow form (JSON is one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from postbus.config import document, shape
from postbus.config.finding import ConfigurationError, Finding, Path, dotted, quoted

PREFIX = "POSTBUS__"


def variables(environ: Mapping[str, str]) -> dict[str, Path]:
    """Return the path each of our variables names, shortest first, so that a whole list can be given and then touched up."""
    named = {name: tuple(_key(part) for part in name.removeprefix(PREFIX).split("__")) for name in environ if name.startswith(PREFIX)}
    return dict(sorted(named.items(), key=lambda item: (len(item[1]), item[0])))


def _key(part: str) -> str | int:
    return int(part) if part.isascii() and part.isdecimal() and len(part) < 6 else part.lower()


def overlay(tree: dict[str, Any], environ: Mapping[str, str], root: type[BaseModel]) -> dict[Path, str]:
    """Put every ``POSTBUS__...`` value of *environ* into *tree*, which is changed; return which variable each path came from.

    Raises:
        ConfigurationError: a name that fits no key of *root*, or a value that is no YAML where it must be.
    """
    origins: dict[Path, str] = {}
    findings: list[Finding] = []
    for name, path in variables(environ).items():
        try:
            _put(tree, path, environ[name], root, name)
            origins[path] = name
        except ConfigurationError as error:
            findings += error.findings
    if findings:
        raise ConfigurationError(findings)
    return origins


def _put(tree: dict[str, Any], path: Path, text: str, root: type[BaseModel], name: str) -> None:
    place: dict[str, Any] | list[Any] = tree
    for depth in range(len(path) - 1):
        here = path[: depth + 1]
        kind = shape.at(root, here, tree)
        if kind and not shape.is_tree(kind):
            whole = PREFIX + "__".join(str(part).upper() for part in here)
            raise _refused(here, "there are no keys below this one", f"set {whole}", name)
        below = _get(place, here, name)
        if not isinstance(below, dict | list):
            raise _refused(here, f"{quoted(below)} has no keys below it", "give the whole value in one variable", name)
        place = below
    value = _value(text, shape.at(root, path, tree), path, name)
    if isinstance(place, list):
        place[_index(place, path, name)] = value
    else:
        place[str(path[-1])] = value


def _get(place: dict[str, Any] | list[Any], path: Path, name: str) -> object:
    """Return what *place* holds at the end of *path*; a map is made where nothing was."""
    if isinstance(place, list):
        return place[_index(place, path, name)]
    if place.get(str(path[-1])) is None:
        place[str(path[-1])] = {}
    return place[str(path[-1])]


def _index(items: list[Any], path: Path, name: str) -> int:
    """Return the end of *path* as a position in *items*; one past the end adds an item."""
    key = path[-1]
    if not isinstance(key, int) or key > len(items):
        raise _refused(path[:-1], f"{quoted(key)} is no position in this list of {len(items)}", f"use 0 to {len(items)}", name)
    if key == len(items):
        items.append({})
    return key


def _value(text: str, place: shape.Shape, path: Path, name: str) -> object:
    if not shape.is_tree(place) or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return document.value(text)
    except ConfigurationError as error:
        raise _refused(path, error.findings[0].message, "write JSON, or YAML on one line", name) from None


def _refused(path: Path, message: str, remedy: str, name: str) -> ConfigurationError:
    return ConfigurationError([Finding("error", dotted(path), None, message, remedy, name)])

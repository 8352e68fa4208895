"""Make the settings from what is embedded, the YAML file and the environment, and remember where each value came from.

Later ones override earlier ones, key by key, with one exception: ``listeners``, ``sinks`` and ``routes`` are embedded as an
example that works, so a file that has its own replaces them whole, and a file with its own sinks brings its own routes.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from postbus.config import document, environment, shape, wording
from postbus.config.document import Document
from postbus.config.finding import ConfigurationError, Finding, Path, dotted
from postbus.config.tree import EMBEDDED, Settings

Origin = Literal["default", "file", "environment"]


@dataclass(frozen=True, slots=True)
class Origins:
    """Where values came from: a file with its lines, and the environment's variables by path."""

    document: Document
    variables: Mapping[Path, str]

    def of(self, path: Path) -> Origin:
        """Return which of the three gave the value at *path*."""
        if self._variable(path):
            return "environment"
        return "file" if path and self._placed(path) in self.document.lines else "default"

    def finding(self, severity: Literal["error", "warning"], path: Path, message: str, remedy: str) -> Finding:
        """Return a finding about *path* that names its variable, or the line of the nearest key the file has.

        Where only variables made what is wrong, as a misspelt key with others below it, the first of them is named.
        """
        lines, given = self.document.lines, path
        path = self._placed(path)
        variable = self._variable(given) or (self._variable_below(given) if path not in lines else None)
        if variable:
            return Finding(severity, dotted(given), None, message, remedy, variable)
        nearest = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in lines), None)
        line = lines[nearest] if nearest else None
        return Finding(severity, dotted(path), line, message, remedy, self.document.name if nearest else "")

    def _placed(self, path: Path) -> Path:
        """Return *path* as the file has it: without the position where one text stands for a list of one."""
        lines = self.document.lines
        single = bool(path) and isinstance(path[-1], int) and path not in lines and path[:-1] in lines
        return path[:-1] if single else path

    def _variable(self, path: Path) -> str | None:
        """Return the variable that gave *path*, or gave a tree above it."""
        text = tuple(map(str, path))
        named = {tuple(map(str, place)): name for place, name in self.variables.items()}
        return next((named[text[:end]] for end in range(len(text), 0, -1) if text[:end] in named), None)

    def _variable_below(self, path: Path) -> str | None:
        """Return the first variable that gave something below *path*."""
        text = tuple(map(str, path))
        below = (name for place, name in self.variables.items() if tuple(map(str, place[: len(text)])) == text)
        return min(below, default=None) if text else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that are valid by themselves; ``check`` knows what concerns more than one of them.

    Attributes:
        origins: where each value came from.
        sha256: of the effective settings, in hex: equal configurations have equal hashes.
    """

    settings: Settings
    origins: Origins
    sha256: str


def load(file: FilePath | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Return the effective settings; *environ* is the process's environment unless given.

    Raises:
        ConfigurationError: with a finding for everything that is wrong, as far as one can be told from another.
    """
    environ = os.environ if environ is None else environ
    said = read(file) if file else Document()
    tree = merged(said.tree)
    variables = environment.overlay(tree, environ, Settings)
    origins = Origins(said, variables)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(_findings(error, tree, origins)) from None
    switches = [origins.finding("error", path, *wording.said(_NO_NUMBER, path, Settings, tree)) for path in _switches(tree)]
    if switches:
        raise ConfigurationError(switches)
    text = settings.model_dump_json()
    return Loaded(settings, origins, hashlib.sha256(text.encode()).hexdigest())


def read(file: FilePath) -> Document:
    """Return what *file* says.

    Raises:
        ConfigurationError: it cannot be read, or not as YAML.
    """
    try:
        return document.parse(file.read_text("utf-8-sig"), str(file))
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise ConfigurationError([Finding("error", "", None, f"the file cannot be read: {why}", _readable(error), str(file))]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError([Finding("error", "", line, "the file is not UTF-8", "save it as UTF-8", str(file))]) from None


def _readable(error: OSError) -> str:
    return {
        FileNotFoundError: "check the path given with --config",
        PermissionError: f"let user {os.getuid()} read it",
        IsADirectoryError: "name the file in it",
    }.get(type(error), "")


def merged(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file *said* over what is embedded."""
    tree = copy.deepcopy(dict(said))
    embedded = copy.deepcopy(EMBEDDED)
    if "sinks" in tree:
        embedded.pop("routes")
    for key, value in embedded.items():
        tree.setdefault(key, value)
    return tree


_NO_NUMBER = ErrorDetails(type="int_type", loc=(), msg="", input=True)


def _switches(tree: Mapping[str, Any]) -> Iterator[Path]:
    """Yield where *tree* has true for a number: pydantic would take it for 1, and false for 0, which often is no limit."""
    for path, value in _leaves(tree, ()):
        if isinstance(value, bool):
            wanted = shape.at(Settings, path, tree)
            if bool not in wanted and {int, float} & set(wanted):
                yield path


def _leaves(place: object, path: Path) -> Iterator[tuple[Path, object]]:
    """Yield each value below *place* that holds no others, with its path."""
    if isinstance(place, Mapping):
        for key, value in place.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(place, list):
        for position, value in enumerate(place):
            yield from _leaves(value, (*path, position))
    else:
        yield path, place


def _findings(error: ValidationError, tree: Mapping[str, Any], origins: Origins) -> list[Finding]:
    """Return one finding for each place pydantic complains about; a union's complaints about one place count once."""
    found: dict[Path, Finding] = {}
    details = [(located(detail, tree), detail) for detail in error.errors(include_url=False)]
    meant = {(*path[:-1], wording.meant(path, Settings, tree)) for path, detail in details if detail["type"] == "extra_forbidden"}
    for path, detail in details:
        if detail["type"] == "too_short" and any(other[: len(path)] == path != other for other, _ in details):
            continue  # items that are wrong are not counted, which would read as if they were not there
        if detail["type"] == "missing" and path in meant:
            continue  # it is there, misspelt, and said so
        message, remedy = wording.said(detail, path, Settings, tree)
        found.setdefault(path, origins.finding("error", path, message, remedy))
    return sorted(found.values(), key=lambda finding: (finding.line or 0, finding.path))


def located(detail: ErrorDetails, tree: object) -> Path:
    """Return where in *tree* the complaint belongs: its location without the tags pydantic adds for unions and validators."""
    path: list[str | int] = []
    place: object = tree
    location = detail["loc"]
    for position, part in enumerate(location):
        inside = (isinstance(place, dict) and part in place) or (isinstance(place, list) and isinstance(part, int) and part < len(place))
        if inside:
            place = place[part]  # type: ignore[index]
            path.append(part)
        elif position == len(location) - 1 and detail["type"] == "missing":
            path.append(part)
    return tuple(path)
